"""Cut parameters into independent blocks: merge small dims, split large ones.

Each block has its own factor matrices. A dimension d takes d^2 numbers and its
root d^3 operations, so no dimension of a block exceeds `max_preconditioner_dim`
(Shi et al. 2023, arXiv 2309.06497, section 3).
"""

import dataclasses
import itertools
from collections.abc import Sequence

import torch

# Parameters without factor matrices are cut only to spread them over ranks.
DIAGONAL_BLOCK_DIM = 524_288


@dataclasses.dataclass(frozen=True)
class Block:
  """Position and shape of a block in its parameter's merged shape.

  Args:
    group: index of the parameter group.
    parameter: index of the parameter over all groups.
    index: position among the parameter's blocks, last dimension fastest.
    starts: first index of the block in each merged dimension.
    shape: the block's shape.
    diagonal: whether it has no factor matrices and takes the grafted step.
  """

  group: int
  parameter: int
  index: int
  starts: tuple[int, ...]
  shape: tuple[int, ...]
  diagonal: bool = False

  @property
  def numel(self) -> int:
    """Number of elements."""
    return torch.Size(self.shape).numel()

  def cut(self, merged: torch.Tensor) -> torch.Tensor:
    """Return this block's view of a tensor of the merged shape."""
    for dim, (start, length) in enumerate(
      zip(self.starts, self.shape, strict=True)
    ):
      if length != merged.shape[dim]:
        merged = merged.narrow(dim, start, length)
    return merged


def merge_dims(shape: Sequence[int], limit: int) -> tuple[int, ...]:
  """Multiply neighbouring dims, left to right, while they stay <= limit.

  >>> merge_dims((5, 3, 3, 3), 16)
  (15, 9)
  >>> merge_dims((1, 1), 16)
  (1,)
  """
  dims = [d for d in shape if d != 1] or [1]
  merged = [dims[0]]
  for dim in dims[1:]:
    if merged[-1] * dim <= limit:
      merged[-1] *= dim
    else:
      merged.append(dim)
  return tuple(merged)


def cut_blocks(
  shape: Sequence[int], limit: int, group: int, parameter: int, diagonal: bool
) -> list[Block]:
  """Cut a merged shape into blocks of at most `limit` in every dimension."""
  if 0 in shape:
    return []
  pieces = [
    [(start, min(limit, dim - start)) for start in range(0, dim, limit)]
    for dim in shape
  ]
  return [
    Block(
      group=group,
      parameter=parameter,
      index=index,
      starts=tuple(start for start, _ in piece),
      shape=tuple(length for _, length in piece),
      diagonal=diagonal,
    )
    for index, piece in enumerate(itertools.product(*pieces))
  ]
