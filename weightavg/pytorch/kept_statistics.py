"""Running statistics as they were before a batch that is not finite.

Layers write their running statistics in the forward pass. A NaN stays in an
exponential mean for ever, so the step that is left out takes its batch back.
"""

from collections.abc import Mapping

from torch import Tensor

from weightavg.pytorch import multi_tensor
from weightavg.pytorch.weights import Weights


class KeptStatistics:
  """Copies of a model's running statistics and of their counts of batches.

  Each rank keeps its own: they differ between ranks without SyncBatchNorm.

  Args:
    weights: of the model; there is nothing to keep if it was built from
      tensors.

  Attributes:
    now: the last copies.
  """

  def __init__(self, weights: Weights) -> None:
    self._weights = weights
    self.restart()

  def restart(self, saved: Mapping[str, Tensor] | None = None) -> None:
    """Keep the statistics of now, or saved ones, whatever was before.

    Args:
      saved: by name, for a model that is perhaps not loaded yet.
    """
    self.now = self._before = self._copies()
    if saved is not None:
      multi_tensor.copy_(self.now, [saved[name] for name in self._live()])

  def by_name(self) -> dict[str, Tensor]:
    """The last copies."""
    return dict(zip(self._live(), self.now, strict=True))

  def keep(self) -> None:
    """Keep the statistics after the forward pass of a step.

    Those of the step before remain: whether this one is left out may not be
    known yet.
    """
    self._before, self.now = self.now, self._copies()

  def put_back(self) -> None:
    """Write back what was kept before the last `keep`."""
    self.now = self._before
    multi_tensor.copy_(list(self._live().values()), self.now)

  def _live(self) -> dict[str, Tensor]:
    return self._weights.live_statistics()

  def _copies(self) -> list[Tensor]:
    copies, _ = multi_tensor.copies(list(self._live().values()))
    return copies
