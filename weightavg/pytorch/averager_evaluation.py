"""Evaluation: shows an average in the model, the chosen one of several."""

import contextlib
from collections.abc import Iterator, Sequence

from absl import logging
from torch import Tensor

from weightavg.pytorch import shown, training_point
from weightavg.pytorch.averager_parts import AveragerParts, outside_autograd


class AveragerEvaluation(AveragerParts):
  """Shows an average in the model and puts the raw weights back."""

  def select(self, which: int) -> None:
    """Choose what evaluation sees from now on, among the averages of `Auto`.

    Args:
      which: index into `choice.names`; -1 for the raw weights.

    Raises:
      RuntimeError: while an average is swapped in.
      ValueError: for an index that no candidate has.
    """
    self._refuse_shown('select()')
    self.choice.select(which)

  def choose(self, losses: Sequence[float]) -> str:
    """Select the average of `Auto` with the lowest loss, the first of equals.

    Args:
      losses: one for each of `choice.names`, on examples that were never
        trained on, the same for all; a loss that is not finite is out.

    Returns:
      Its name; 'raw' where no loss is finite.

    >>> import torch
    >>> from weightavg import Auto
    >>> from weightavg.pytorch import Averager
    >>> model = torch.nn.Linear(2, 1)
    >>> averager = Averager(
    ...   model, Auto('raw, ema 0.1, polynomial 4'), total_steps=100)
    >>> averager.update()
    >>> losses = []
    >>> for which in range(len(averager.choice.names)):
    ...   with averager.evaluating(which):
    ...     losses.append(model(torch.ones(1, 2)).item() ** 2)
    >>> averager.choose(losses)
    'raw'
    """
    which = self.choice.lowest(losses)
    self.select(which)
    return 'raw' if which < 0 else self.choice.names[which]

  @outside_autograd
  def swap_in(self, *, allow_load: bool = False) -> None:
    """Show the average; nothing happens if it is shown already.

    With placement='sharded' every rank must call it: one all-gather, and the
    start of another one to rank 0 for the checkpoint.

    Args:
      allow_load: let `load_state_dict` of the model write to the average until
        `swap_out`, as an evaluation does that averages the model over ranks.
        By default it is refused, as it is mostly a mistake. With
        swap='exchange' what is loaded into the parameters stays in the average
        where the model holds the average's own memory: a running average in the
        weights' dtype on their device. It is lost elsewhere.

    Raises:
      RuntimeError: another averager shows its average in the same weights, or
        has handed z to the optimizer; with an interpolation, the weights were
        changed since the last `update`.
    """
    # Without a scheme the model is evaluated as it is.
    if self.swapped or self.placement is None:
      return
    # Also where there is no sample yet: another average, or z, would pass for
    # the raw weights.
    self._weights.follow()
    shown.check_not_shown(self._weights.parameters, 'swap_in()')
    self._refuse_in_step('swap_in()')
    training_point.check_not_stepped(self._weights.parameters, 'swap_in()')
    if not self.samples:
      return
    self.placement.collect()
    self.choice.warn_if_none()
    self._warn_if_not_refreshed()
    if self.choice.shows_raw:
      return
    raw = self._weights.data()
    self._check_unchanged()
    average = self.placement.shown(raw, self.choice.selected)
    self._swap.show(raw, average, allow_load)

  @outside_autograd
  def swap_out(self) -> None:
    """Put the raw weights back; nothing happens if they are in place."""
    was_swapped = self.swapped
    self._swap.undo()
    self.choice.give_up()
    if was_swapped and self._primal is not None:
      self._primal.note_put_back()

  @contextlib.contextmanager
  def evaluating(self, which: int | None = None) -> Iterator[None]:
    """Show the average inside the block, the raw weights after it.

    Args:
      which: index into `choice.names` of another average than the chosen one;
        -1 for the raw weights.

    Raises:
      RuntimeError: an average is shown already and another one is asked for.
    """
    was_swapped = self.swapped
    if which is not None:
      if which != self.choice.selected:
        self._refuse_shown(f'evaluating({which})')
      self.choice.attempt(which)
    try:
      self.swap_in()
      yield
    finally:
      if not was_swapped:
        self.swap_out()

  def _warn_if_not_refreshed(self) -> None:
    """Say once that the statistics are still those of the first batch."""
    every = self._refresh_every
    if every is not None and self.step >= every and not self._is_refreshed:
      self._is_refreshed = True
      logging.warning(
        'Running statistics are of the first step: none of %d steps was '
        'followed by a forward pass inside refreshing(). Make one where '
        'refresh_due is true.',
        self.step,
      )

  def _check_unchanged(self) -> None:
    """With an interpolation the average is computed from the weights."""
    if self._primal is not None:
      self._primal.check_unchanged()

  @outside_autograd
  def _average(self) -> list[Tensor]:
    """Return the weights for evaluation, raw before the first sample.

    Raises:
      RuntimeError: another averager shows its average in the same weights; with
        an interpolation, the weights were changed since the last `update`.
    """
    raw = self._swap.raw
    if raw is None:
      shown.check_not_shown(self._weights.parameters, 'averaged_state_dict()')
      raw = self._weights.data()
      self._check_unchanged()
    if self.placement is None or not self.samples or self.choice.shows_raw:
      return raw
    return self.placement.shown(raw, self.choice.selected)
