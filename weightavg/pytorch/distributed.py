"""The processes that train together."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world(
  group: dist.ProcessGroup | None = None,
) -> tuple[int, int]:
  """This process's rank and the number of processes: (0, 1) for one alone.

  Args:
    group: the processes; None for all.
  """
  if dist.is_available() and dist.is_initialized():
    return dist.get_rank(group), dist.get_world_size(group)
  return 0, 1


def world_size() -> int:
  """Number of processes that train together."""
  return rank_and_world()[1]


def group_of(
  collective: bool | dist.ProcessGroup,
) -> dist.ProcessGroup | None:
  """The ranks that make collectives together; None if this one makes none.

  Args:
    collective: False for none, True for all ranks, or a group of them.
  """
  if collective is False or not dist.is_available():
    return None
  if not dist.is_initialized():
    return None
  group = dist.group.WORLD if collective is True else collective
  # -1 on a rank outside of the group.
  return group if dist.get_world_size(group) > 1 else None


def any_rank(
  flag: bool, groups: Sequence[dist.ProcessGroup], device: torch.device
) -> bool:
  """True if the flag is True on a rank of the groups; waits for the answer.

  Args:
    flag: this rank's.
    groups: the ranks; none for this one alone.
    device: this rank's, for a backend that reduces nothing in host memory;
      the current GPU in the place of that memory.
  """
  return bool(maxima([flag], groups, device)[0])


def maxima(
  numbers: Sequence[int],
  groups: Sequence[dist.ProcessGroup],
  device: torch.device,
) -> list[int]:
  """Return the largest of each number over the ranks; waits for the answer.

  Args:
    numbers: this rank's.
    groups: as those of `any_rank`.
    device: as that of `any_rank`.
  """
  if not groups:
    return list(numbers)
  on_host = all('cpu' in dist.get_backend_config(group) for group in groups)
  if on_host:
    device = torch.device('cpu')
  elif device.type == 'cpu':
    device = torch.device('cuda')
  found = torch.tensor(numbers, dtype=torch.int64, device=device)
  max_over_ranks_(found, groups)
  return found.tolist()


def max_over_ranks_(
  number: Tensor, groups: Sequence[dist.ProcessGroup]
) -> None:
  """number <- its maximum over the ranks of each group in turn."""
  for group in groups:
    dist.all_reduce(number, dist.ReduceOp.MAX, group=group)
