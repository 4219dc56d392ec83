"""Averages beside the weights, on their devices.

An averager feeds a placement the weights and asks it for their average. The
placement decides on which device the buffers are, how samples get there, and
how a checkpoint collects them. The others override single methods of this one.
All placements give the same bits (for weights on the CPU).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from weightavg.pytorch import accumulators
from weightavg.pytorch.finite import Look
from weightavg.schemes import Scheme


class DevicePlacement:
  """Keeps averages beside the weights and shows them without a copy.

  `tensors` is the same list of weights in every call.

  Args:
    scheme: with its length in samples.
    tensors: the weights.
    allocate: makes the buffers.
  """

  def __init__(
    self,
    scheme: Scheme,
    tensors: Sequence[Tensor],
    allocate: accumulators.Allocate = accumulators.allocate_beside,
  ) -> None:
    # Samples so far.
    self.count = 0
    self._parts = scheme.parts
    self._accumulators = accumulators.build_accumulators(
      scheme, tensors, allocate
    )

  def add(self, tensors: Sequence[Tensor], look: Look | None = None) -> None:
    """Take the tensors in as the next sample.

    Args:
      tensors: the weights.
      look: at a sample that may have to be skipped; `retract` is called before
        the next one if so.
    """
    self._accumulate(tensors, None if look is None else look.skip)
    # Not before: memory for a sample may lack.
    self.count += 1

  def _accumulate(
    self, tensors: Sequence[Tensor], skip: Tensor | None = None
  ) -> None:
    accumulators.add_to_all([*self._accumulators.values()], tensors, skip)

  def retract(self) -> None:
    """Forget that the last sample, which was to be skipped, was added."""
    self.count -= 1
    for accumulator in self._accumulators.values():
      accumulator.retract()

  def shown(self, tensors: Sequence[Tensor], which: int = 0) -> list[Tensor]:
    """An average in the dtypes and on the devices of the weights.

    Valid until the next sample. A collective if the average is sharded. Here it
    is the accumulator's own where dtypes agree, a cast of it elsewhere.

    Args:
      tensors: the weights.
      which: index among the scheme's parts.
    """
    averages = self._accumulators[which].average()
    return [
      a if a.dtype == t.dtype else a.to(t.dtype)
      for a, t in zip(averages, tensors, strict=True)
    ]

  def settle(self) -> None:
    """Wait for samples that are being taken in; here none is."""

  def collect(self) -> None:
    """Start to bring together what `buffers` needs; called on all ranks."""

  def buffers(self) -> list[list[Tensor]] | None:
    """Whole buffers, parallel to the tensors; None if not collected."""
    return self._own_buffers()

  def _own_buffers(self) -> list[list[Tensor]]:
    """The buffers of all accumulators, one after the other."""
    return [b for a in self._accumulators.values() for b in a.buffers()]

  def _dtypes(self, tensors: Sequence[Tensor]) -> list[list[torch.dtype]]:
    """The dtypes of each of the buffers of all accumulators."""
    own = [t.dtype for t in tensors]
    wide = [accumulators.average_dtype(dtype) for dtype in own]
    return [
      wide if is_wide else own
      for a in self._accumulators.values()
      for is_wide in a.widened()
    ]

  def restore(
    self,
    count: int,
    buffers: Sequence[Sequence[Tensor]],
    tensors: Sequence[Tensor],
  ) -> None:
    """Continue from whole buffers, which are copied."""
    self.count = count
    begin = 0
    for which, accumulator in self._accumulators.items():
      end = begin + self._parts[which].stored(count)
      accumulator.restore(count, buffers[begin:end], tensors)
      begin = end

  def nbytes(self) -> int:
    """Bytes that this rank keeps of the averages."""
    return sum(a.nbytes() for a in self._accumulators.values())
