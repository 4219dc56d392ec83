"""The processes that train together."""

import torch.distributed as dist


def rank_and_world() -> tuple[int, int]:
  """This process's rank and the number of processes: (0, 1) for one alone."""
  if dist.is_available() and dist.is_initialized():
    return dist.get_rank(), dist.get_world_size()
  return 0, 1


def world_size() -> int:
  """Number of processes that train together."""
  return rank_and_world()[1]
