"""Show the progress of long work: a bar on a terminal, lines in a log."""

import sys
from typing import Any

from absl import logging


class Progress:
  """Count the steps of a trial.

  Args:
    total: Steps of the whole trial.
    start: Completed steps.
    visible: False on the ranks that report nothing.
  """

  def __init__(self, total: int, start: int, visible: bool) -> None:
    self._bar: Any = None
    if visible and sys.stderr.isatty():
      try:
        from tqdm import tqdm
      except ImportError:
        return
      self._bar = tqdm(total=total, initial=start, unit='step', leave=False)

  def step(self, total: int | None = None) -> None:
    """Count one step; `total` replaces that of the beginning."""
    if self._bar is not None:
      self._bar.total = self._bar.total if total is None else total
      self._bar.update()

  def say(self, line: str) -> None:
    """Log a line without breaking the bar."""
    if self._bar is not None:
      self._bar.clear()
    logging.info(line)
    if self._bar is not None:
      self._bar.refresh()

  def close(self) -> None:
    """Remove the bar."""
    if self._bar is not None:
      self._bar.close()
