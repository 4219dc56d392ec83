"""The average of Schedule-Free, weighted by steps and learning rates."""

import dataclasses
from typing import ClassVar

from weightavg.config_fields import config_field
from weightavg.schemes.base import Recursive, register


@register
@dataclasses.dataclass(frozen=True, repr=False)
class ScheduleFree(Recursive):
  """Average that needs no schedule (Defazio et al. 2024, 2405.15682).

    w_k = k^step_power max(lr_1, ..., lr_k)^2,   c_k = w_k / (w_1 + ... + w_k)

  The gradient is taken between the average x and the optimizer's iterate z
  (`averaging_interpolation`, which must be above 0), z is stored, x is
  evaluated. Neither the budget nor a horizon has to be known. Without a warm-up
  the learning rates cancel; `coefficient` and `weights` are those of a constant
  learning rate.

  Args:
    step_power: r, in [0, 50]; 0 weighs all steps alike. A million steps to the
      power of 50 are still a float64.

  >>> [round(14 * w, 12) for w in ScheduleFree(step_power=2.0).weights(3)]
  [1.0, 4.0, 9.0]
  """

  name: ClassVar[str] = 'schedule_free'
  default_interpolation: ClassVar[float] = 0.9

  step_power: float = config_field(
    0.0,
    float,
    '[0, 50]',
    'r: the k-th step has the weight k^r in schedule_free',
    key='schedule_free_power',
  )

  def coefficient(self, count: int) -> float:
    """Weight with which the count-th sample enters, at a constant rate."""
    return self.weights(count)[-1]

  def weights(self, count: int) -> list[float]:
    """Weights of samples 1..count, at a constant rate."""
    powers = [k**self.step_power for k in range(1, count + 1)]
    total = sum(powers)
    return [power / total for power in powers]

  def sample_weight(self, count: int, largest_rate: float) -> float:
    """w_k, given the largest learning rate so far."""
    return count**self.step_power * largest_rate**2
