"""Find each wait of the host for the device, and the line that causes it."""

import collections
import pathlib
import traceback
import warnings
from collections.abc import Callable

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
_ROOMS = ('weightavg', 'submissions', 'lab')


def waits(
  call: Callable[[], object], device: torch.device
) -> dict[str, int] | None:
  """Synchronising CUDA operations of one call, by the line that makes them.

  The line is the innermost one of this repository or of AlgoPerf; `torch` where
  neither is on the stack. None on a CPU. torch notices copies, reads and
  conversions, but no waits for events.
  """
  if device.type != 'cuda':
    return None
  places: collections.Counter[str] = collections.Counter()

  def note(message: Warning | str, *arguments: object) -> None:
    del arguments
    if 'called a synchronizing' in str(message):
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
    if any(path.is_relative_to(ROOT / room) for room in _ROOMS):
      return f'{path.relative_to(ROOT).as_posix()}:{frame.lineno}'
    if 'algoperf' in path.parts:
      inside = path.parts[path.parts.index('algoperf') :]
      return f'{"/".join(inside)}:{frame.lineno}'
  return 'torch'


def total(places: dict[str, int] | None) -> int | None:
  """Number of all waits."""
  return None if places is None else sum(places.values())
