"""Training at the average: the calls around a step with an interpolation.

The arithmetic is in `primal`.
"""

import contextlib
from collections.abc import Iterator

import torch

from weightavg.pytorch import (
  finite,
  refreshed_statistics,
  shown,
  training_point,
)
from weightavg.pytorch.averager_parts import AveragerParts, outside_autograd
from weightavg.pytorch.primal import PrimalPlacement


class AveragerInterpolation(AveragerParts):
  """Hands z to the optimizer, takes it in, and refreshes running statistics."""

  _warned: bool

  @outside_autograd
  def before_step(self, *optimizers: torch.optim.Optimizer) -> None:
    """Call before each step of the optimizer, after clipping its gradients.

    Without an interpolation nothing happens. With one the model holds z from
    here to `update`.

    Args:
      *optimizers: those that step the model's parameters. Their learning rates
        are read here.

    Raises:
      RuntimeError: an average is shown, or the weights were changed since the
        last `update`.
      ValueError: with an interpolation, there is no optimizer, or one that is
        none.
    """
    if self._primal is None:
      return
    if not optimizers or not all(
      hasattr(o, 'param_groups') for o in optimizers
    ):
      names = ', '.join(type(o).__name__ for o in optimizers)
      raise ValueError(
        f'Invalid optimizers=({names}). Must be those that step the model.'
      )
    optimizers = tuple(map(training_point.unwrapped, optimizers))
    self._refuse_shown('before_step()')
    self._settle()
    self._weights.follow()
    shown.check_not_shown(self._weights.parameters, 'before_step()')
    if not self._primal.in_step:
      training_point.check_not_stepped(
        self._weights.parameters, 'before_step()'
      )
    if not self._warned:
      self._warned = True
      training_point.warn_of_momentum(self.interpolation, optimizers)
    self._primal.begin(
      optimizers,
      self.sampling.is_sampled(self.step + 1),
    )

  @outside_autograd
  def _end_step(
    self, placement: PrimalPlacement, is_finite: bool | None
  ) -> None:
    statistics = self._weights.statistics_now(self._collective)
    result = placement.end(is_finite, statistics)
    self.step += 1
    if isinstance(result, finite.Look):
      self._look = (result, self.step)
    elif result is False:
      placement.retract()
      self._skip(self.step)

  @property
  def refresh_due(self) -> bool:
    """True after a step behind which `refreshing()` is to be entered."""
    return (
      self._refresh_every is not None
      and self.step % self._refresh_every == 0
      and self.samples > 0
    )

  @contextlib.contextmanager
  def refreshing(self) -> Iterator[None]:
    """Let forward passes move the running statistics of the average.

    Call the model in training mode inside the block, on a training batch,
    whenever `refresh_due` is true. Its layers' own momentum applies. The model,
    its buffers and the random numbers are as before after the block.

    Raises:
      RuntimeError: an average is shown, there is no sample yet, batch_norm is
        not 'refreshed', or `before_step` was interrupted.

    >>> from weightavg import Ema
    >>> from weightavg.pytorch import Averager
    >>> model, batch = torch.nn.BatchNorm1d(2), torch.ones(4, 2)
    >>> averager = Averager(
    ...   model, Ema(0.9), interpolation=0.9, batch_norm='refreshed')
    >>> if averager.refresh_due:
    ...   with averager.refreshing():
    ...     _ = model(batch)
    """
    if self._primal is None or self._refresh_every is None:
      raise RuntimeError(
        "Nothing is refreshed: batch_norm is not 'refreshed', or the model has "
        'no running statistics.'
      )
    self._refuse_shown('refreshing()')
    self._refuse_in_step('refreshing()')
    self._primal.check_whole()
    if not self.samples:
      raise RuntimeError(
        'Nothing is averaged yet. Enter refreshing() where refresh_due is true.'
      )
    self._weights.follow()
    with torch.no_grad():
      average = self._primal.shown(self._weights.data())
    with refreshed_statistics.forward_passes(
      self._weights,
      self._swap,
      average,
      self._collective,
      self._primal.keep_statistics,
    ):
      yield
    self._is_refreshed = True
