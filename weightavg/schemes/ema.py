"""Exponential moving average."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

from weightavg.config_fields import config_field
from weightavg.schemes.base import (
  DEFAULT_HORIZON,
  Recursive,
  Scheme,
  register,
)


@register
@dataclasses.dataclass(frozen=True, repr=False)
class Ema(Recursive):
  """Exponential moving average of the samples, normalised.

    w_j = (1 - decay) decay^(k-j) / (1 - decay^k)

  A horizon of N samples is the decay 1 - 1/N. Trained are the model's own
  weights; stored is one running average; evaluated is that average.

  Args:
    decay: per sample, in [0, 1). Where it is given and no cadence is, every
      step is a sample.
    horizon: instead of `decay`, as a fraction of the training budget in (0, 1];
      0.01 if neither is given.

  >>> [round(7 * w, 12) for w in Ema(decay=0.5).weights(3)]
  [1.0, 2.0, 4.0]
  """

  name: ClassVar[str] = 'ema'
  candidate: ClassVar[str | None] = 'ema'
  argument: ClassVar[str | None] = 'horizon'
  exclusive: ClassVar[tuple[str, ...]] = ('horizon', 'decay')

  decay: float | None = config_field(
    None, float, '[0, 1)', 'EMA decay per sample', key='ema_decay'
  )
  horizon: float | None = config_field(
    None,
    float,
    '(0, 1]',
    'length of the average, fraction of T',
    DEFAULT_HORIZON,
    key='averaging_horizon',
  )

  def default_every(
    self, budget: int | None, steps_per_epoch: int | None
  ) -> int:
    """One step for an explicit decay, as in other libraries."""
    if self.decay is not None:
      return 1
    return super().default_every(budget, steps_per_epoch)

  def resolved(self, samples_in: Callable[[float], int]) -> Scheme:
    """With the decay of the horizon, 1 - 1/N."""
    if self.decay is not None:
      return self
    return Ema(decay=1.0 - 1.0 / samples_in(self.horizon or DEFAULT_HORIZON))

  def coefficient(self, count: int) -> float:
    """(1 - decay) / (1 - decay^k); expm1 keeps decays near 1 exact."""
    assert self.decay is not None, 'resolved() gives the decay of a horizon'
    if self.decay == 0.0:
      return 1.0
    return (1.0 - self.decay) / -math.expm1(count * math.log(self.decay))
