"""Describe the device and the size of a section, and collect its rows."""

import contextlib
import dataclasses
import traceback
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

Values = dict[str, Any]
# A section yields its rows as it measures them: (name, values).
Rows = Iterator[tuple[str, Values]]

T = TypeVar('T')


class SkippedError(Exception):
  """Raised by a section that cannot run on this machine; says why."""


@dataclasses.dataclass(frozen=True)
class Setting:
  """The device, size and output of a section.

  Args:
    device: of everything that is measured.
    smoke: tiny sizes and no compiler, which test the harness on a CPU. The
      times then mean nothing.
  """

  device: torch.device
  smoke: bool = False

  def pick(self, full: T, tiny: T) -> T:
    """The full value, or the tiny one under `smoke`."""
    return tiny if self.smoke else full

  @property
  def compile_options(self) -> dict[str, Any]:
    """Arguments of torch.compile: its defaults, but no compiler in a smoke."""
    return {'backend': 'eager'} if self.smoke else {}


class Attempts:
  """Measurements of a section that survive each other's failure.

  >>> attempts = Attempts()
  >>> with attempts.one('first'):
  ...   raise ValueError('of no use')
  >>> with attempts.one('second'):
  ...   pass
  >>> attempts.check()
  Traceback (most recent call last):
  ...
  RuntimeError: Not measured: first (ValueError: of no use).
  """

  def __init__(self) -> None:
    self._failed: list[str] = []

  @contextlib.contextmanager
  def one(self, name: str) -> Iterator[None]:
    """Print and keep an error of the block; a SkippedError passes."""
    try:
      yield
    except SkippedError:
      raise
    # A library or a device may fail in any way.
    except Exception as error:
      traceback.print_exc()
      lines = str(error).strip().splitlines()
      reason = f'{type(error).__name__}: {lines[0] if lines else ""}'
      self._failed.append(f'{name} ({reason[:200]})')

  def check(self) -> None:
    """Raise RuntimeError if any block failed; call it at the section's end."""
    if self._failed:
      raise RuntimeError(f'Not measured: {", ".join(self._failed)}.')
