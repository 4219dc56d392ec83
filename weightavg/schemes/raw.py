"""No average: evaluation sees the weights that are trained."""

from typing import ClassVar

from weightavg.schemes.base import Scheme, register


@register
class Raw(Scheme):
  """The trained weights themselves; nothing is stored.

  w_k = 1, all others 0.
  """

  name: ClassVar[str] = 'none'
  candidate: ClassVar[str | None] = 'raw'

  def weights(self, count: int) -> list[float]:
    """One for the last sample."""
    return [0.0] * (count - 1) + [1.0]

  def stored(self, count: int) -> int:
    """Nothing."""
    del count
    return 0
