"""Showing an average in a model, and putting its weights back."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightavg.pytorch import dtensors, multi_tensor, shown
from weightavg.pytorch.weights import Weights


class Swap:
  """The exchange of a model's weights for an average, and back.

  Args:
    weights: of the model.
    exchange: exchange storages instead of copying.
  """

  def __init__(self, weights: Weights, exchange: bool) -> None:
    self._weights = weights
    # A DTensor has no storage to exchange: its piece is copied into.
    self._exchange = (
      exchange and weights.are_parameters and not weights.distributed
    )
    # The raw weights while the average is shown: their storages if those are
    # exchanged, copies of them otherwise.
    self.raw: list[Tensor] | None = None
    self.backup: list[Tensor] | None = None
    # Recomputed statistics (torch's update_bn) begin their counts anew.
    self._counters: dict[str, Tensor] = {}
    self._showing: shown.Showing | None = None

  def show(self, raw: list[Tensor], average: list[Tensor]) -> None:
    """Put an average in the place of the weights.

    Args:
      raw: the weights' data.
      average: parallel to them.

    Raises:
      RuntimeError: another averager shows its average in the same weights.
    """
    weights = self._weights
    self._showing = shown.Showing(self, weights.parameters, weights.modules())
    shown.clear_autocast_cache()
    self.set_counters(weights.counters())
    if self._exchange:
      self._exchange_in(raw, average)
    else:
      self._copy_in(raw, average)

  def undo(self) -> None:
    """Put the weights back; nothing happens if they are in place."""
    if self.raw is None:
      return
    self._weights.reshard()
    if self._exchange:
      for tensor, raw in zip(self._weights.tensors, self.raw, strict=True):
        tensor.data = raw
    else:
      multi_tensor.copy_(
        [dtensors.local(t) for t in self._weights.tensors], self.raw
      )
    self._weights.set_counters(self._counters)
    self.raw = None
    shown.clear_autocast_cache()
    if self._showing is not None:
      self._showing.end()
      self._showing = None

  def counters(self) -> dict[str, Tensor]:
    """Numbers of batches that `undo` will put back, by name."""
    return {} if self.raw is None else dict(self._counters)

  def set_counters(self, counters: Mapping[str, Tensor]) -> None:
    """Let `undo` put back these numbers of batches, and no others."""
    self._counters = {k: c.clone() for k, c in counters.items()}

  def _exchange_in(self, raw: list[Tensor], average: list[Tensor]) -> None:
    # Before anything is exchanged: undo can then put back half a swap.
    self.raw = raw
    count = len(self._weights.parameters)
    # Layers write to statistics in place: whoever recomputes them for the
    # average (torch's update_bn) must not write to the average itself.
    average = average[:count] + [t.clone() for t in average[count:]]
    for tensor, own in zip(self._weights.tensors, average, strict=True):
      tensor.data = own

  def _copy_in(self, raw: list[Tensor], average: Sequence[Tensor]) -> None:
    if self.backup is None:
      self.backup = [torch.empty_like(t) for t in raw]
    multi_tensor.copy_(self.backup, raw)
    self.raw = self.backup
    multi_tensor.copy_(raw, average)
