"""Which processes train together, and on which device this one does."""

import os

import torch
import torch.distributed as dist


def distributed() -> bool:
  """Whether several processes train together."""
  return (
    dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
  )


def rank_and_world() -> tuple[int, int]:
  """This process's rank and the number of processes."""
  if distributed():
    return dist.get_rank(), dist.get_world_size()
  return 0, 1


def local_device() -> torch.device:
  """CUDA device of this process's LOCAL_RANK, or the CPU."""
  if torch.cuda.is_available():
    return torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
  return torch.device('cpu')
