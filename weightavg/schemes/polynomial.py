"""Polynomial-decay average."""

import dataclasses
from typing import ClassVar

from weightavg.config_fields import config_field
from weightavg.schemes.base import Recursive, register


@register
@dataclasses.dataclass(frozen=True, repr=False)
class Polynomial(Recursive):
  """Polynomial-decay average (Shamir and Zhang 2013, 1212.1824, section 4).

    c_k = min(1, (power + 1) / (power + k))

  The horizon is a fraction 1 / (power + 1) of the samples so far: neither the
  budget nor a horizon has to be known. The power-function EMA of Karras et al.
  2024 (2312.02696) is the same family.

  Args:
    power: gamma, in [0, inf); 0 is Polyak's uniform mean.

  >>> Polynomial(power=0.0).weights(4)
  [0.25, 0.25, 0.25, 0.25]
  """

  name: ClassVar[str] = 'polynomial'
  candidate: ClassVar[str | None] = 'polynomial'
  argument: ClassVar[str | None] = 'power'

  power: float = config_field(
    4.0,
    float,
    '[0, inf)',
    'gamma of the polynomial average; 0 is the uniform mean',
    key='averaging_power',
  )

  def coefficient(self, count: int) -> float:
    """Weight with which the count-th sample enters."""
    return min(1.0, (self.power + 1.0) / (self.power + count))
