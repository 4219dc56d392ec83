"""Averages in host memory: the accelerator keeps none of them.

A sample is copied to a pinned staging buffer on a side stream, and a worker
thread takes it from there into the average. Training waits only if the next
sample comes before the last one has been taken in.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from weightavg.pytorch import accumulators, async_copy
from weightavg.pytorch.device_placement import DevicePlacement
from weightavg.pytorch.finite import Look
from weightavg.schemes import Scheme


class HostPlacement(DevicePlacement):
  """Keeps averages in host memory; samples are copied while training continues.

  For weights on the CPU the same path runs synchronously.

  Args:
    scheme: with its length in samples.
    tensors: the weights, on one device.
    transfers: how copies are made; by default as the device asks for.
    worker: takes samples in; by default a thread beside a device.
  """

  def __init__(
    self,
    scheme: Scheme,
    tensors: Sequence[Tensor],
    transfers: async_copy.Transfers | None = None,
    worker: async_copy.Worker | async_copy.Inline | None = None,
  ) -> None:
    cuda = next((t.device for t in tensors if t.is_cuda), None)
    if transfers is None:
      transfers = (
        async_copy.SynchronousTransfers()
        if cuda is None
        else async_copy.CudaTransfers(cuda)
      )
    if worker is None:
      worker = async_copy.Inline() if cuda is None else async_copy.Worker()
    self._transfers = transfers
    self._worker = worker
    self._pinned = cuda is not None
    self._staging = [self._allocate(t, t.dtype) for t in tensors]
    self._under_way: Future | None = None
    super().__init__(scheme, self._staging, self._allocate)

  def __getstate__(self) -> dict[str, Any]:
    # A future cannot be copied; what it computes is in the averages then.
    self.settle()
    return self.__dict__.copy()

  def _allocate(self, like: Tensor, dtype: torch.dtype) -> Tensor:
    host = torch.empty_like(
      like, dtype=dtype, device='cpu', requires_grad=False
    )
    # Pinned memory makes the way back at evaluation fast, too.
    return host.pin_memory() if self._pinned else host

  def settle(self) -> None:
    """Wait until the staging buffer is free and the averages complete.

    Raises once what a sample could not be taken in for, as where memory lacks.
    That sample is then forgotten.
    """
    if self._under_way is None:
      return
    # Where the waiting itself is interrupted, the sample is still under way.
    error = self._under_way.exception()
    self._under_way = None
    if error is not None:
      self.count -= 1
      raise error

  def add(self, tensors: Sequence[Tensor], look: Look | None = None) -> None:
    """Start taking the tensors in as the next sample."""
    self.settle()
    self._transfers.copy_out(self._staging, tensors)
    self._under_way = self._worker.submit(lambda: self._take_in(look))
    self.count += 1

  def _take_in(self, look: Look | None) -> None:
    self._transfers.wait()
    if look is None or not look.must_skip():
      self._accumulate(self._staging)

  def retract(self) -> None:
    """Forget the last sample, which has not been taken in."""
    self.count -= 1

  def shown(self, tensors: Sequence[Tensor], which: int = 0) -> list[Tensor]:
    """An average, copied to the weights' device."""
    self.settle()
    averages = self._accumulators[which].average()
    return [
      average.to(device=t.device, dtype=t.dtype, non_blocking=True)
      for average, t in zip(averages, tensors, strict=True)
    ]

  def buffers(self) -> list[list[Tensor]]:
    """The buffers themselves."""
    self.settle()
    return self._own_buffers()

  def restore(
    self,
    count: int,
    buffers: Sequence[Sequence[Tensor]],
    tensors: Sequence[Tensor],
  ) -> None:
    """Continue from whole buffers, which are copied."""
    del tensors
    self.settle()
    super().restore(count, buffers, self._staging)

  def nbytes(self) -> int:
    """Bytes in host memory, the staging buffer included."""
    self.settle()
    return super().nbytes() + accumulators.nbytes(self._staging)
