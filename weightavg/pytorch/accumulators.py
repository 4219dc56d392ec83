"""The buffers of one average: a running average, or a window of samples.

An accumulator is fed lists of tensors and gives back their average. It does not
know names, steps or models. Its buffers have the shapes and strides of the
tensors it was made for; `allocate` says on which device.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from weightavg.pytorch import multi_tensor
from weightavg.schemes import Recursive, Scheme, Windowed


def average_dtype(dtype: torch.dtype) -> torch.dtype:
  """float32, and wider only where the weights themselves are wider."""
  return torch.promote_types(dtype, torch.float32)


# Makes an uninitialised tensor like another one, in the given dtype.
Allocate = Callable[[Tensor, torch.dtype], Tensor]


def allocate_beside(like: Tensor, dtype: torch.dtype) -> Tensor:
  """Allocate on the device of the tensor itself."""
  return torch.empty_like(like, dtype=dtype, requires_grad=False)


def nbytes(tensors: Sequence[Tensor]) -> int:
  """Bytes of tensors that own their memory."""
  return sum(t.numel() * t.element_size() for t in tensors)


class Accumulator(Protocol):
  """The state of one average over one list of tensors."""

  count: int

  def add(self, tensors: Sequence[Tensor], skip: Tensor | None = None) -> None:
    """Take the tensors in as the next sample.

    Args:
      tensors: the sample.
      skip: on an accelerator, 0 or 1; if it is 1, no buffer may change, and
        `retract` is called before the next sample.
    """

  def reserve(self, tensors: Sequence[Tensor]) -> None:
    """Allocate what `add` needs; nothing changes where memory lacks."""

  def retract(self) -> None:
    """Forget that the last sample, which was to be skipped, was added."""

  def average(self) -> list[Tensor]:
    """The average of all samples so far; owned by the accumulator."""

  def buffers(self) -> list[list[Tensor]]:
    """The lists of tensors to save, each parallel to the averaged tensors."""

  def widened(self) -> list[bool]:
    """For each of the buffers, true if it is in `average_dtype`."""

  def restore(
    self,
    count: int,
    buffers: Sequence[Sequence[Tensor]],
    tensors: Sequence[Tensor],
  ) -> None:
    """Continue from saved buffers, which are copied, as if fed `tensors`."""

  def nbytes(self) -> int:
    """Bytes of all buffers."""


class RunningAccumulator:
  """a <- a + c_k (x_k - a), in float32 at least."""

  def __init__(
    self,
    scheme: Recursive,
    tensors: Sequence[Tensor],
    allocate: Allocate = allocate_beside,
  ) -> None:
    self.scheme = scheme
    self.count = 0
    self._averages = [allocate(t, average_dtype(t.dtype)) for t in tensors]

  def reserve(self, tensors: Sequence[Tensor]) -> None:
    """Nothing to do: the average has its memory."""

  def add(self, tensors: Sequence[Tensor], skip: Tensor | None = None) -> None:
    """Take the tensors in as the next sample."""
    weight = self.next_weight()
    if self.count == 1:
      # If it is to be skipped, the next one takes its place.
      multi_tensor.copy_(self._averages, tensors)
    elif skip is None:
      multi_tensor.lerp_(self._averages, tensors, weight)
    else:
      multi_tensor.skipping_lerp_(self._averages, tensors, weight, skip)

  def retract(self) -> None:
    """Forget that the last sample was added."""
    self.count -= 1

  def next_weight(self) -> float:
    """Count one more sample; the weight with which the caller takes it in."""
    self.count += 1
    return self.scheme.coefficient(self.count)

  def average(self) -> list[Tensor]:
    """The running average itself: no copy."""
    return self._averages

  def buffers(self) -> list[list[Tensor]]:
    """The running average, once there is one."""
    return [self._averages] if self.count else []

  def widened(self) -> list[bool]:
    """The running average is in float32 at least."""
    return [True] if self.count else []

  def restore(
    self,
    count: int,
    buffers: Sequence[Sequence[Tensor]],
    tensors: Sequence[Tensor],
  ) -> None:
    """Continue from a saved average."""
    del tensors  # the average's own buffers are there
    self.count = count
    for saved in buffers:
      multi_tensor.copy_(self._averages, saved)

  def nbytes(self) -> int:
    """Bytes of the average."""
    return nbytes(self._averages)


class WindowAccumulator:
  """The last samples, in the weights' own dtype, and their mean.

  Samples are exact copies; the mean is summed in float32, oldest first, when
  it is asked for. The oldest sample's memory takes the next one.
  """

  def __init__(
    self,
    scheme: Windowed,
    tensors: Sequence[Tensor],
    allocate: Allocate = allocate_beside,
  ) -> None:
    del tensors  # the first sample says what the buffers are like
    self.scheme = scheme
    self.count = 0
    self._allocate = allocate
    self._samples: list[list[Tensor]] = []
    # Memory of the next sample, where no old one gives it.
    self._reserved: list[Tensor] | None = None
    # The last sample has the memory of the one that was the oldest.
    self._replaced_oldest = False
    self._mean: list[Tensor] | None = None

  def _new_sample(self, tensors: Sequence[Tensor]) -> list[Tensor]:
    return [self._allocate(t, t.dtype) for t in tensors]

  def reserve(self, tensors: Sequence[Tensor]) -> None:
    """Allocate the next sample, unless the oldest gives its memory."""
    if self._reserved is None and len(self._samples) < self.scheme.size:
      self._reserved = self._new_sample(tensors)

  def add(self, tensors: Sequence[Tensor], skip: Tensor | None = None) -> None:
    """Take the tensors in as the next sample."""
    self.reserve(tensors)
    self._replaced_oldest = len(self._samples) == self.scheme.size
    if self._replaced_oldest:
      slot = self._samples.pop(0)
    else:
      assert self._reserved is not None
      slot, self._reserved = self._reserved, None
    if skip is None or not self._replaced_oldest:
      multi_tensor.copy_(slot, tensors)
    else:
      multi_tensor.skipping_copy_(slot, tensors, skip)
    self._samples.append(slot)
    self.count += 1

  def retract(self) -> None:
    """Forget that the last sample was added; the oldest is the oldest again."""
    slot = self._samples.pop()
    if self._replaced_oldest:
      self._samples.insert(0, slot)
    self.count -= 1

  def average(self) -> list[Tensor]:
    """The mean of the window; its buffers are made at the first call."""
    if self._mean is None:
      self._mean = [
        self._allocate(t, average_dtype(t.dtype)) for t in self._samples[0]
      ]
    multi_tensor.mean_(self._mean, self._samples)
    return self._mean

  def buffers(self) -> list[list[Tensor]]:
    """The samples, oldest first."""
    return self._samples

  def widened(self) -> list[bool]:
    """Samples are in the weights' own dtype."""
    return [False] * len(self._samples)

  def restore(
    self,
    count: int,
    buffers: Sequence[Sequence[Tensor]],
    tensors: Sequence[Tensor],
  ) -> None:
    """Continue from saved samples, oldest first."""
    self.count = count
    self._samples = [self._new_sample(tensors) for _ in buffers]
    self._reserved = None
    for slot, saved in zip(self._samples, buffers, strict=True):
      multi_tensor.copy_(slot, saved)

  def nbytes(self) -> int:
    """Bytes of the samples and, once it has been asked for, of the mean."""
    lists = [*self._samples, self._mean or []]
    return sum(nbytes(tensors) for tensors in lists)


def build_accumulators(
  scheme: Scheme,
  tensors: Sequence[Tensor],
  allocate: Allocate = allocate_beside,
) -> dict[int, Accumulator]:
  """The accumulator of each part of a scheme that stores anything.

  Args:
    scheme: with its length in samples.
    tensors: what is averaged.
    allocate: makes the buffers.

  Returns:
    Accumulators by their index among `scheme.parts`.
  """
  found: dict[int, Accumulator] = {}
  for which, part in enumerate(scheme.parts):
    if isinstance(part, Recursive):
      found[which] = RunningAccumulator(part, tensors, allocate)
    elif isinstance(part, Windowed):
      found[which] = WindowAccumulator(part, tensors, allocate)
  return found


def add_to_all(
  accumulators: Sequence[Accumulator],
  tensors: Sequence[Tensor],
  skip: Tensor | None = None,
) -> None:
  """Take one sample into all; several running averages share one read of it."""
  # All or none take the sample in.
  for accumulator in accumulators:
    accumulator.reserve(tensors)
  running = [
    accumulator
    for accumulator in accumulators
    if isinstance(accumulator, RunningAccumulator) and accumulator.count
  ]
  if len(running) < 2 or skip is not None:
    running = []
  for accumulator in accumulators:
    if accumulator not in running:
      accumulator.add(tensors, skip)
  if running:
    weights = [accumulator.next_weight() for accumulator in running]
    averages = [accumulator.average() for accumulator in running]
    multi_tensor.lerp_all_(averages, tensors, weights)
