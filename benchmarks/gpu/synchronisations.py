"""Where the host waits for the device: every wait and the code that asked."""

import collections
import pathlib
import traceback
import warnings
from collections.abc import Callable

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Whoever measures is on every stack.
_NOT_A_PLACE = pathlib.Path(__file__).resolve().parent


def waits(
  call: Callable[[], object], device: torch.device
) -> dict[str, int] | None:
  """Synchronising CUDA operations of one call, by the line that makes them.

  The line is the innermost one of this repository, `torch` where torch itself
  is called by nobody here. None on a CPU. torch notices copies, reads and
  conversions, but no waits for events.
  """
  if device.type != 'cuda':
    return None
  places: collections.Counter[str] = collections.Counter()

  def note(message: Warning | str, *arguments: object) -> None:
    del arguments
    if 'synchronizing' in str(message):
      places[_place()] += 1

  torch.cuda.synchronize(device)
  with warnings.catch_warnings():
    warnings.simplefilter('always')
    warnings.showwarning = note  # type: ignore[assignment]
    torch.cuda.set_sync_debug_mode('warn')
    try:
      call()
    finally:
      torch.cuda.set_sync_debug_mode('default')
  return dict(places)


def _place() -> str:
  for frame in reversed(traceback.extract_stack()):
    path = pathlib.Path(frame.filename)
    if path.is_relative_to(ROOT) and not path.is_relative_to(_NOT_A_PLACE):
      return f'{path.relative_to(ROOT).as_posix()}:{frame.lineno}'
  return 'torch'


def total(places: dict[str, int] | None) -> int | None:
  """Number of all waits."""
  return None if places is None else sum(places.values())
