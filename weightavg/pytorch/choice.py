"""The choice of the average that evaluation sees."""

import math
import operator
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
    # To what it returns once another average has been tried, and whether that
    # was chosen.
    self._before: tuple[int, bool] | None = None

  def select(self, which: int) -> None:
    """Choose what is shown from now on.

    Args:
      which: index into `names`; RAW (-1) for the raw weights.

    Raises:
      ValueError: for an index that no candidate has.
    """
    count = len(self._parts)
    try:
      # Checkpoints hold Python's integers alone, not those of NumPy or torch.
      index = count if isinstance(which, bool) else operator.index(which)
    except TypeError:
      index = count
    if not RAW <= index < count:
      raise ValueError(
        f'Invalid {which=}. Must be an integer in [-1, {count}).'
      )
    self.selected = index
    self.is_made = True
    # Also while another one is tried.
    self._before = None

  def attempt(self, which: int) -> None:
    """Show another average until `give_up`; it is not chosen by that.

    Raises:
      ValueError: for an index that no candidate has.
    """
    before = self.chosen
    self.select(which)
    self._before = before

  def give_up(self) -> None:
    """Return to the average that was chosen; nothing happens if it is shown."""
    if self._before is not None:
      (self.selected, self.is_made), self._before = self._before, None

  @property
  def chosen(self) -> tuple[int, bool]:
    """The index that was chosen, and whether anybody chose it."""
    return self._before or (self.selected, self.is_made)

  def restore(
    self, shown: int, chosen: int | None, is_made: bool | None
  ) -> None:
    """Continue from a saved choice.

    Args:
      shown: index of the average that was shown.
      chosen: index of the choice; None for that, as in earlier versions.
      is_made: whether anybody chose it; None for any average.
    """
    self.selected = shown if chosen is None else chosen
    self.is_made = (
      not self.names or self.selected != RAW if is_made is None else is_made
    )
    self._before = None
    if shown != self.selected:
      self.attempt(shown)

  def lowest(self, losses: Sequence[float]) -> int:
    """Index of the lowest finite loss, the first of equals; RAW for none.

    Raises:
      ValueError: there is not one number for each of `names`.
    """
    if not self.names or len(losses) != len(self.names):
      raise ValueError(
        f'Invalid losses: {len(losses)} for {len(self.names)} candidates. Must '
        'be one for each.'
      )
    try:
      values = [float(loss) for loss in losses]
    except (TypeError, ValueError, RuntimeError):
      raise ValueError(
        'Invalid losses. Must be one number for each candidate, such as the '
        'mean over examples.'
      ) from None
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
