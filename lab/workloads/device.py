"""Find the device of this process, and if several processes train together."""

import os

import torch

from weightavg.pytorch.distributed import world_size


def distributed() -> bool:
  """Return True if several processes train together."""
  return world_size() > 1


def local_device() -> torch.device:
  """CUDA device of this process's LOCAL_RANK, or the CPU."""
  if torch.cuda.is_available():
    return torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
  return torch.device('cpu')
