"""What an averager stores: a running average, or a window of samples.

A track is fed lists of tensors and gives back their average. It does not know
names, steps or models. Its buffers have the shapes and strides of the tensors
it was made for; where they lie is up to `allocate`.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from weightavg import coefficients
from weightavg.pytorch import multi_tensor


def average_dtype(dtype: torch.dtype) -> torch.dtype:
  """float32, and wider only where the weights themselves are wider."""
  return torch.promote_types(dtype, torch.float32)


# Makes an uninitialised tensor like another one, in the given dtype.
Allocate = Callable[[Tensor, torch.dtype], Tensor]


def allocate_beside(like: Tensor, dtype: torch.dtype) -> Tensor:
  """On the device of the tensor itself."""
  return torch.empty_like(like, dtype=dtype, requires_grad=False)


def nbytes(tensors: Sequence[Tensor]) -> int:
  """Bytes of tensors that own their memory."""
  return sum(t.numel() * t.element_size() for t in tensors)


class Track(Protocol):
  """State of one average over one list of tensors."""

  count: int

  def add(self, tensors: Sequence[Tensor]) -> None:
    """Take the tensors in as the next sample."""

  def average(self, which: int = 0) -> list[Tensor]:
    """The average of all samples so far; owned by the track.

    Args:
      which: of several candidates.
    """

  def buffers(self) -> list[list[Tensor]]:
    """What has to be saved: lists of tensors, parallel to the tracked ones."""

  def widened(self) -> list[bool]:
    """For each of the buffers, whether it is in `average_dtype`."""

  def restore(
    self,
    count: int,
    buffers: Sequence[Sequence[Tensor]],
    tensors: Sequence[Tensor],
  ) -> None:
    """Continue from saved buffers, which are copied, as if fed `tensors`."""

  def nbytes(self) -> int:
    """Bytes of all buffers."""


class RunningTrack:
  """a <- a + c_k (x_k - a), in float32: EMA and polynomial averages."""

  def __init__(
    self,
    scheme: coefficients.Recursive,
    tensors: Sequence[Tensor],
    allocate: Allocate = allocate_beside,
  ) -> None:
    self.scheme = scheme
    self.count = 0
    self._averages = [allocate(t, average_dtype(t.dtype)) for t in tensors]

  def add(self, tensors: Sequence[Tensor]) -> None:
    """Take the tensors in as the next sample."""
    weight = self.next_weight()
    if self.count == 1:
      multi_tensor.copy_(self._averages, tensors)
    else:
      multi_tensor.lerp_(self._averages, tensors, weight)

  def next_weight(self) -> float:
    """Count one more sample; the weight with which the caller takes it in."""
    self.count += 1
    return self.scheme.coefficient(self.count)

  def average(self, which: int = 0) -> list[Tensor]:
    """The running average itself: no copy."""
    del which
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


class WindowTrack:
  """The last `window` samples, in the weights' own dtype, and their mean.

  Samples are exact copies; the mean is summed in float32, oldest first, when
  it is asked for. The oldest sample's memory takes the next one.
  """

  def __init__(
    self,
    scheme: coefficients.Lawa,
    tensors: Sequence[Tensor],
    allocate: Allocate = allocate_beside,
  ) -> None:
    del tensors  # the first sample says what the buffers are like
    self.scheme = scheme
    self.count = 0
    self._allocate = allocate
    self._samples: list[list[Tensor]] = []
    self._mean: list[Tensor] | None = None

  def _new_sample(self, tensors: Sequence[Tensor]) -> list[Tensor]:
    return [self._allocate(t, t.dtype) for t in tensors]

  def add(self, tensors: Sequence[Tensor]) -> None:
    """Take the tensors in as the next sample."""
    if len(self._samples) == self.scheme.window:
      slot = self._samples.pop(0)
    else:
      slot = self._new_sample(tensors)
    multi_tensor.copy_(slot, tensors)
    self._samples.append(slot)
    self.count += 1

  def average(self, which: int = 0) -> list[Tensor]:
    """The mean of the window; its buffers are made at the first call."""
    del which
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
    for slot, saved in zip(self._samples, buffers, strict=True):
      multi_tensor.copy_(slot, saved)

  def nbytes(self) -> int:
    """Bytes of the samples and, once it has been asked for, of the mean."""
    lists = [*self._samples, self._mean or []]
    return sum(nbytes(tensors) for tensors in lists)


class CandidateTracks:
  """The tracks of several candidates, fed together.

  Where the candidate is the raw weights there is no track, and no average.
  """

  def __init__(
    self,
    scheme: coefficients.Candidates,
    tensors: Sequence[Tensor],
    allocate: Allocate = allocate_beside,
  ) -> None:
    self.count = 0
    self._schemes = scheme.schemes
    self._tracks = {
      which: build_track(single, tensors, allocate)
      for which, single in enumerate(scheme.schemes)
      if single is not None
    }

  def add(self, tensors: Sequence[Tensor]) -> None:
    """Take the tensors in; running averages share one read of them."""
    self.count += 1
    running = []
    for track in self._tracks.values():
      if isinstance(track, RunningTrack) and self.count > 1:
        running.append(track)
      else:
        track.add(tensors)
    if running:
      weights = [track.next_weight() for track in running]
      averages = [track.average() for track in running]
      multi_tensor.lerp_all_(averages, tensors, weights)

  def average(self, which: int = 0) -> list[Tensor]:
    """The average of one candidate."""
    return self._tracks[which].average()

  def buffers(self) -> list[list[Tensor]]:
    """Those of all candidates, one after the other."""
    return [b for track in self._tracks.values() for b in track.buffers()]

  def widened(self) -> list[bool]:
    """Those of all candidates, one after the other."""
    return [w for track in self._tracks.values() for w in track.widened()]

  def restore(
    self,
    count: int,
    buffers: Sequence[Sequence[Tensor]],
    tensors: Sequence[Tensor],
  ) -> None:
    """Continue from saved buffers."""
    self.count = count
    begin = 0
    for which, track in self._tracks.items():
      end = begin + stored_buffers(self._schemes[which], count)
      track.restore(count, buffers[begin:end], tensors)
      begin = end

  def nbytes(self) -> int:
    """Bytes of all candidates."""
    return sum(track.nbytes() for track in self._tracks.values())


def stored_buffers(scheme: coefficients.Scheme | None, samples: int) -> int:
  """Number of buffers of a track after so many samples."""
  if scheme is None:
    return 0
  if isinstance(scheme, coefficients.Candidates):
    return sum(stored_buffers(single, samples) for single in scheme.schemes)
  return min(samples, getattr(scheme, 'window', 1))


def build_track(
  scheme: coefficients.Scheme,
  tensors: Sequence[Tensor],
  allocate: Allocate = allocate_beside,
) -> Track:
  """The track of a scheme over tensors."""
  if isinstance(scheme, coefficients.Candidates):
    return CandidateTracks(scheme, tensors, allocate)
  if isinstance(scheme, coefficients.Lawa):
    return WindowTrack(scheme, tensors, allocate)
  return RunningTrack(scheme, tensors, allocate)
