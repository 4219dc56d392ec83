"""Work beside the training: a worker thread, and copies on a side stream."""

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from weightavg.pytorch import multi_tensor


class Worker:
  """One thread that runs jobs in the order of submission."""

  def __init__(self) -> None:
    self._pool = ThreadPoolExecutor(1, thread_name_prefix='weightavg')

  def __reduce__(self) -> tuple[type['Worker'], tuple[()]]:
    return Worker, ()  # a copy has a thread of its own

  def submit(self, job: Callable[[], Any]) -> Future:
    """Queue a job; its result or exception is in the future."""
    return self._pool.submit(job)


class Inline:
  """Runs jobs at once, where there is nothing to overlap with."""

  def submit(self, job: Callable[[], Any]) -> Future:
    """Run the job now."""
    future: Future = Future()
    try:
      future.set_result(job())
    except Exception as error:
      future.set_exception(error)
    return future


class Transfers(Protocol):
  """Copies between weights and host buffers."""

  def copy_out(
    self, hosts: Sequence[Tensor], tensors: Sequence[Tensor]
  ) -> None:
    """Start copying tensors to hosts; both stay untouched until `wait`."""

  def wait(self) -> None:
    """Block until the last `copy_out` has arrived; from any thread."""


class SynchronousTransfers:
  """Copies at once, for tensors that are in host memory already."""

  def copy_out(
    self, hosts: Sequence[Tensor], tensors: Sequence[Tensor]
  ) -> None:
    """Copy tensors to hosts."""
    multi_tensor.copy_(hosts, tensors)

  def wait(self) -> None:
    """Nothing is under way."""


class CudaTransfers:
  """Copies on a side stream, behind the work queued so far.

  Training continues meanwhile, but the optimizer must not write to weights that
  are still being read: before each step of any torch optimizer the stream that
  runs it waits for the copy. That wait is on the device and in general over
  before it begins, a forward and a backward pass later.
  """

  def __init__(self, device: torch.device) -> None:
    self._stream = torch.cuda.Stream(device)
    self._arrived = torch.cuda.Event()
    self._read: list[Tensor] = []
    self._hook = register_optimizer_step_pre_hook(
      _weak_guard(weakref.ref(self))
    )
    weakref.finalize(self, self._hook.remove)

  def __reduce__(self) -> tuple[type['CudaTransfers'], tuple[torch.device]]:
    return CudaTransfers, (self._stream.device,)

  def copy_out(
    self, hosts: Sequence[Tensor], tensors: Sequence[Tensor]
  ) -> None:
    """Start copying tensors to pinned hosts."""
    # Memory given back before the copy has read it would be written to.
    self._read = list(tensors)
    self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
    with torch.cuda.stream(self._stream):
      torch._foreach_copy_(list(hosts), list(tensors), non_blocking=True)
      self._arrived.record(self._stream)

  def wait(self) -> None:
    """Block this thread until the last copy has arrived."""
    self._arrived.synchronize()

  def guard(self) -> None:
    """Let the current stream wait for the last copy."""
    torch.cuda.current_stream(self._stream.device).wait_event(self._arrived)


def _weak_guard(reference: weakref.ref) -> Callable[..., None]:
  """The hook must not keep the transfers, and so their buffers, alive."""

  def before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    del optimizer, args, kwargs
    transfers = reference()
    if transfers is not None:
      transfers.guard()

  return before_step
