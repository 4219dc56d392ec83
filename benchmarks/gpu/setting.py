"""Describe the device and the size of a section, and collect its rows."""

import dataclasses
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
