"""The optimizer steps after which an averager takes a sample."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Steps at which the weights are sampled.

  Args:
    every: steps between two samples, at least 1.
    start: step before which nothing is sampled.

  >>> list(Sampling(every=3, start=5).steps(last=12))
  [6, 9, 12]
  """

  every: int
  start: int = 0

  def is_sampled(self, step: int) -> bool:
    """Tell if the weights after `step` optimizer steps (1, 2, ...) enter."""
    return step >= self.start and step % self.every == 0

  def steps(self, last: int) -> range:
    """All sampled steps up to and including `last`."""
    first = max(1, -(-self.start // self.every)) * self.every
    return range(first, last + 1, self.every)
