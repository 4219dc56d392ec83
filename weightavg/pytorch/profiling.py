"""Durations of the named sections of a run.

A section costs two clock readings and nothing else while no recorder is
active, so the library can leave them in place:

>>> recorder = Recorder()
>>> with recording(recorder):
...   with section('optimizer'):
...     pass
>>> recorder.sections['optimizer'].calls
1
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator

import torch


@dataclasses.dataclass
class Section:
  """Calls of one section and their durations in seconds."""

  calls: int = 0
  total: float = 0.0
  total_squares: float = 0.0

  @property
  def mean(self) -> float:
    """Mean duration of a call, in seconds."""
    return self.total / max(self.calls, 1)

  @property
  def std(self) -> float:
    """Standard deviation of the durations, in seconds."""
    variance = self.total_squares / max(self.calls, 1) - self.mean**2
    return math.sqrt(max(variance, 0.0))


class Recorder:
  """Adds up the durations of sections; `synchronize` waits for CUDA first.

  Without `synchronize` a section on a GPU measures the launch of its kernels,
  not their run: cheap enough to be always on, but no breakdown.
  """

  def __init__(self, synchronize: bool = False) -> None:
    self.synchronize = synchronize and torch.cuda.is_available()
    self.sections: dict[str, Section] = {}

  def clock(self) -> float:
    """Seconds on a monotonic clock."""
    if self.synchronize:
      torch.cuda.synchronize()
    return time.perf_counter()

  def add(self, name: str, seconds: float) -> None:
    """Count one call of the section `name`."""
    entry = self.sections.setdefault(name, Section())
    entry.calls += 1
    entry.total += seconds
    entry.total_squares += seconds**2


_active: Recorder | None = None


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
  """Make `recorder` the one that `section` reports to, in this process."""
  global _active
  previous, _active = _active, recorder
  try:
    yield recorder
  finally:
    _active = previous


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
  """Measure the block under `name` if a recorder is active."""
  recorder = _active
  if recorder is None:
    yield
    return
  start = recorder.clock()
  try:
    yield
  finally:
    recorder.add(name, recorder.clock() - start)
