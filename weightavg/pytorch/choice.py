"""The choice of the average that evaluation sees."""

import math
from collections.abc import Sequence

from absl import logging

from weightavg.schemes import Raw, Scheme

# In place of an average: the raw weights.
RAW = -1


class Choice:
  """The index of the average that is shown, among the parts of a scheme.

  A scheme that keeps one average shows it. One that keeps several shows the raw
  weights until one of them is selected.

  Args:
    scheme: with its length in samples.
  """

  def __init__(self, scheme: Scheme) -> None:
    self._parts = scheme.parts
    self.names = scheme.part_names
    self.selected = RAW if self.names else 0
    self.is_made = not self.names

  def select(self, which: int) -> None:
    """Choose what is shown from now on.

    Args:
      which: index into `names`; RAW (-1) for the raw weights.

    Raises:
      ValueError: for an index that no candidate has.
    """
    count = len(self._parts)
    if not RAW <= which < count:
      raise ValueError(f'Invalid {which=}. Must be in [-1, {count}).')
    self.selected = which
    self.is_made = True

  def lowest(self, losses: Sequence[float]) -> int:
    """Index of the lowest finite loss, the first of equals; RAW for none.

    Raises:
      ValueError: there is not one loss for each of `names`.
    """
    if not self.names or len(losses) != len(self.names):
      raise ValueError(
        f'Invalid losses: {len(losses)} for {len(self.names)} candidates. Must '
        'be one for each.'
      )
    values = [float(loss) for loss in losses]
    finite = [i for i, value in enumerate(values) if math.isfinite(value)]
    return min(finite, key=lambda i: values[i], default=RAW)

  def warn_if_none(self) -> None:
    """Say once that none was made: the raw weights would be shown silently."""
    if not self.is_made:
      self.is_made = True
      logging.warning(
        'No average has been chosen among %s: evaluation sees the raw weights. '
        'Call choose(losses) of the averager.',
        ', '.join(self.names),
      )

  @property
  def shows_raw(self) -> bool:
    """True where the raw weights are selected."""
    return self.selected == RAW or isinstance(self._parts[self.selected], Raw)
