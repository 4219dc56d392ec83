"""Placements of averages: beside the weights, in host memory, or sharded."""

from collections.abc import Sequence

from torch import Tensor

from weightavg.pytorch.device_placement import DevicePlacement
from weightavg.pytorch.offload import HostPlacement
from weightavg.pytorch.sharding import ShardedPlacement
from weightavg.schemes import Scheme


def build_placement(
  name: str,
  scheme: Scheme,
  tensors: Sequence[Tensor],
  checkpoints: bool = True,
) -> DevicePlacement:
  """Build the placement called `name`: 'device', 'cpu' or 'sharded'.

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
