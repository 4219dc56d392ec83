"""Placements of averages: beside the weights, in host memory, or sharded."""

from collections.abc import Sequence

import torch.distributed as dist
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
  group: dist.ProcessGroup | None = None,
) -> DevicePlacement:
  """Build the placement called `name`: 'device', 'cpu' or 'sharded'.

  Args:
    name: of the placement.
    scheme: with its length in samples.
    tensors: the weights.
    checkpoints: of `ShardedPlacement`.
    group: of `ShardedPlacement`.

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
    return ShardedPlacement(scheme, tensors, checkpoints, group)
  return DevicePlacement(scheme, tensors)
