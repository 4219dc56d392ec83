"""The coefficient c of a sample in primal averaging, and what it depends on."""

import dataclasses
from collections.abc import Sequence

from weightavg.schemes import Recursive


@dataclasses.dataclass(frozen=True)
class Weighting:
  """Sums over the samples of a scheme whose weights follow the learning rate.

  Args:
    total: w_1 + ... + w_k.
    largest_rate: max(lr_1, ..., lr_k).
  """

  total: float = 0.0
  largest_rate: float = 0.0

  def next(
    self, scheme: Recursive, count: int, rates: Sequence[float]
  ) -> tuple[float, 'Weighting']:
    """Return c of one more sample, and the sums with it.

    Args:
      scheme: gives c, or the weight w of a sample.
      count: number of the sample, 1, 2, ...
      rates: learning rates of its step.
    """
    largest = max([self.largest_rate, *rates])
    weight = scheme.sample_weight(count, largest)
    total = self.total + (weight or 0.0)
    after = Weighting(total, largest)
    if weight is None:
      return scheme.coefficient(count), after
    return weight / total if total else 1.0, after
