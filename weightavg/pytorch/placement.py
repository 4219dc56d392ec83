"""Where an average lives: beside the weights, in host memory, or sharded.

An averager feeds a placement the weights and asks it for their average; where
buffers lie, how they get there and how a checkpoint gets at them is the
placement's affair. All placements give the same bits (for weights on the CPU).
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from weightavg import coefficients
from weightavg.pytorch import accumulators
from weightavg.pytorch.offload import HostPlacement
from weightavg.pytorch.sharding import ShardedPlacement


class Placement(Protocol):
  """Holds the track of one average. `tensors` is always the same list."""

  @property
  def count(self) -> int:
    """Samples so far."""

  def add(self, tensors: Sequence[Tensor]) -> None:
    """Take the tensors in as the next sample."""

  def shown(self, tensors: Sequence[Tensor], which: int = 0) -> list[Tensor]:
    """The average in the dtypes and on the devices of the weights.

    Valid until the next sample. A collective if the average is sharded.

    Args:
      tensors: the weights.
      which: of several candidates.
    """

  def collect(self) -> None:
    """Start to bring together what `buffers` needs; called on all ranks."""

  def buffers(self) -> list[list[Tensor]] | None:
    """Whole buffers, parallel to the tensors; None if not collected."""

  def restore(
    self,
    count: int,
    buffers: Sequence[Sequence[Tensor]],
    tensors: Sequence[Tensor],
  ) -> None:
    """Continue from whole buffers, which are copied."""

  def nbytes(self) -> int:
    """Bytes that this rank keeps of the average."""


class DevicePlacement:
  """Beside the weights: the average is shown without a copy."""

  def __init__(
    self, scheme: coefficients.Scheme, tensors: Sequence[Tensor]
  ) -> None:
    self._track = accumulators.build_track(scheme, tensors)

  @property
  def count(self) -> int:
    """Samples so far."""
    return self._track.count

  def add(self, tensors: Sequence[Tensor]) -> None:
    """Take the tensors in as the next sample."""
    self._track.add(tensors)

  def shown(self, tensors: Sequence[Tensor], which: int = 0) -> list[Tensor]:
    """The track's own average where dtypes agree, a cast of it elsewhere."""
    averages = self._track.average(which)
    return [
      a if a.dtype == t.dtype else a.to(t.dtype)
      for a, t in zip(averages, tensors, strict=True)
    ]

  def collect(self) -> None:
    """Nothing to do: every rank has everything."""

  def buffers(self) -> list[list[Tensor]]:
    """The track's buffers themselves."""
    return self._track.buffers()

  def restore(
    self,
    count: int,
    buffers: Sequence[Sequence[Tensor]],
    tensors: Sequence[Tensor],
  ) -> None:
    """Continue from whole buffers, which are copied."""
    self._track.restore(count, buffers, tensors)

  def nbytes(self) -> int:
    """Bytes of the track's buffers."""
    return self._track.nbytes()


def build_placement(
  name: str,
  scheme: coefficients.Scheme,
  tensors: Sequence[Tensor],
  checkpoints: bool = True,
) -> Placement:
  """The placement called `name`: 'device', 'cpu' or 'sharded'.

  Raises:
    ValueError: for weights on several devices, unless they stay there.
  """
  devices = sorted({str(t.device) for t in tensors})
  if name != 'device' and len(devices) > 1:
    raise ValueError(
      f'Invalid averaging_placement={name!r}. The weights are on '
      f'{" and ".join(devices)}; only device takes several.'
    )
  if name == 'cpu':
    return HostPlacement(scheme, tensors)
  if name == 'sharded':
    return ShardedPlacement(scheme, tensors, checkpoints)
  return DevicePlacement(scheme, tensors)
