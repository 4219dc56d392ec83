"""SIGTERM and SIGUSR1, by which schedulers announce the end of a job."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# "Temporary failure": the checkpoint is written, the run can be resumed.
CHECKPOINT_WRITTEN = os.EX_TEMPFAIL


class Interruption:
  """Notes a signal, which the run looks for after each step.

  Attributes:
    signal: Number of the first signal that has arrived; 0 before.
  """

  def __init__(self) -> None:
    self.signal = 0

  @contextlib.contextmanager
  def awaited(self) -> Iterator[None]:
    """Note signals inside the block, in the main thread only.

    Further ones change nothing: a scheduler and torchrun may both send one.
    """

    def note(number: int, frame: Any) -> None:
      del frame
      self.signal = self.signal or number

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)


class Interrupted(Exception):
  """A signal has ended a run.

  Args:
    number: The signal.
    step: Updates made.
    path: The checkpoint from which the run can be resumed; None without one.
    saves: Whether checkpoints were asked for.
  """

  def __init__(
    self, number: int, step: int, path: str | None, saves: bool = True
  ) -> None:
    self.status = 128 + number if path is None else CHECKPOINT_WRITTEN
    end = 'No checkpoint was asked for.'
    if path is not None:
      end = f'{path} is written: use --resume_last_run to go on.'
    elif saves:
      end = 'There is no checkpoint yet.'
    name = signal.Signals(number).name
    super().__init__(f'Stopped by {name} at step {step}. {end}')
