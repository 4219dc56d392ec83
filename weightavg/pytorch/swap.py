"""Showing an average in a model, and putting its weights back."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from absl import logging
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
    self._has_warned = False

  def __getstate__(self) -> dict[str, Any]:
    # The guards are of these parameters, a copy of the model has others.
    return self.__dict__ | {'_showing': None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    if self.raw is not None:
      self._showing = self._guard()
      self._showing.begin()
      self._showing.note_versions()

  def _guard(self, allow_load: bool = False) -> shown.Showing:
    weights = self._weights
    return shown.Showing(
      self, weights.parameters, weights.modules(), allow_load
    )

  def show(
    self, raw: list[Tensor], average: list[Tensor], allow_load: bool = False
  ) -> None:
    """Put an average in the place of the weights.

    Args:
      raw: the weights' data.
      average: parallel to them.
      allow_load: as in `Averager.swap_in`.

    The weights are in place if it fails, as where memory for them is lacking.

    Raises:
      RuntimeError: another averager shows its average in the same weights.
    """
    self._showing = self._guard(allow_load)
    try:
      self._showing.begin()
      shown.clear_autocast_cache()
      self.set_counters(self._weights.counters())
      if self._exchange:
        self._exchange_in(raw, average)
      else:
        self._copy_in(raw, average)
    except BaseException:
      self.undo()
      self._end_guard()
      raise
    self._showing.note_versions()

  def undo(self) -> None:
    """Put the weights back; nothing happens if they are in place.

    Parameters that have replaced others since `show` get the weights of those.
    Writes to the parameters are logged, once for all swaps.
    """
    if self.raw is None:
      # A swap that was interrupted may have left guards.
      self._end_guard()
      return
    self._warn_of_writes()
    # Whole copies of sharded parameters are dropped first. Where the model has
    # changed otherwise, the next sample raises.
    with contextlib.suppress(RuntimeError):
      self._weights.follow()
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
    self._end_guard()

  def _end_guard(self) -> None:
    if self._showing is not None:
      self._showing.end()
      self._showing = None

  def _warn_of_writes(self) -> None:
    written = [] if self._showing is None else self._showing.written()
    if not written or self._has_warned:
      return
    self._has_warned = True
    logging.warning(
      '%r was written to while the model held the average%s. %s',
      self._weights.names[written[0]],
      f', and {len(written) - 1} more' if written[1:] else '',
      'The average may have changed.'
      if self._exchange
      else 'That is lost now.',
    )

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
