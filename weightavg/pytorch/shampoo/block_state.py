"""Blocks of one shape: their state in stacked tensors, and their step.

Everything is batched over consecutive blocks that have a gradient. How many at
once is a matter of speed only: on a GPU all of them, on a CPU as many as stay
in the cache between the operations.
"""

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence

import torch

from weightavg.pytorch.shampoo import grafting as grafts
from weightavg.pytorch.shampoo import symmetric_pairs
from weightavg.pytorch.shampoo.blocking import Block

# Elements of the blocks that are worked on together on a CPU.
_CPU_CHUNK = 1 << 17


class BlockStack:
  """State of blocks of one shape, dtype and device, stacked along dim 0.

  Tensors (only those that the hyperparameters need):
    momentum: m, the filtered gradient's average, [n, *shape].
    second_moment: v of the grafting method, [n, *shape].
    velocity: h, the momentum of the update, [n, *shape].
    pairs: per mode k of size d, the factor matrix and its inverse root,
      [n, d, d + 1] as `packed` lays them out.
  """

  def __init__(
    self,
    blocks: Sequence[Block],
    group: Mapping,
    dtype: torch.dtype,
    preconditioner_dtype: torch.dtype,
    device: torch.device,
  ) -> None:
    self.blocks = list(blocks)
    self.shape = self.blocks[0].shape
    self.diagonal = self.blocks[0].diagonal
    self.dtype = dtype
    self._device = device
    self.preconditioner_dtype = preconditioner_dtype
    # A block without factors cannot be stepped by anything but its grafting.
    self.grafting = 'adam' if self.diagonal else group['grafting']

    def zeros(wanted: bool) -> torch.Tensor | None:
      if not wanted:
        return None
      shape = (len(self.blocks), *self.shape)
      return torch.zeros(shape, dtype=dtype, device=device)

    self.momentum = zeros(group['betas'][0] > 0)
    self.second_moment = zeros(grafts.has_second_moment(self.grafting))
    self.velocity = zeros(group['momentum'] > 0)
    self.pairs = [
      symmetric_pairs.new_pair(
        len(self.blocks), dim, preconditioner_dtype, device
      )
      for dim in (() if self.diagonal else self.shape)
    ]

    self._cut: dict[
      tuple[int, int],
      list[tuple[symmetric_pairs.SymmetricHalf, symmetric_pairs.SymmetricHalf]],
    ] = {}

  def tensors(self) -> dict[str, torch.Tensor]:
    """All state tensors by name."""
    named = {
      'momentum': self.momentum,
      'second_moment': self.second_moment,
      'velocity': self.velocity,
    }
    named |= {f'pair_{mode}': pair for mode, pair in enumerate(self.pairs)}
    return {name: t for name, t in named.items() if t is not None}

  def chunks(self, classes: Mapping[Block, Hashable]) -> Iterator[slice]:
    """Ranges of consecutive blocks of one class; blocks in none are skipped."""
    limit = len(self.blocks)
    if self._device.type == 'cpu':
      largest = max([pair[0].numel() for pair in self.pairs], default=1)
      limit = max(1, _CPU_CHUNK // max(self.blocks[0].numel, largest // 64))
    start = 0
    for kind, run in itertools.groupby(self.blocks, classes.get):
      stop = start + len(list(run))
      if kind is not None:
        for begin in range(start, stop, limit):
          yield slice(begin, min(begin + limit, stop))
      start = stop

  def gather(
    self, chunk: slice, views: Mapping[Block, torch.Tensor]
  ) -> torch.Tensor:
    """The blocks' views as one tensor [n, *shape] of the state's dtype."""
    parts = [views[block] for block in self.blocks[chunk]]
    stacked = parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)
    return stacked.to(self.dtype)

  def add_factors(
    self, chunk: slice, gradient: torch.Tensor, beta: float
  ) -> None:
    """A_k <- beta A_k + (1 - beta) G_(k) G_(k)^T for every mode k."""
    keep, add = (1.0, 1.0) if beta == 1 else (beta, 1 - beta)
    gradient = gradient.to(self.preconditioner_dtype)
    for mode, (factor, _) in enumerate(self._halves(chunk)):
      rows = _unfold(gradient, mode)
      factor.add_gram(rows, keep, add)

  def filter(
    self, chunk: slice, gradient: torch.Tensor, beta: float, nadam: bool
  ) -> torch.Tensor:
    """Update m; returns the filtered gradient before bias correction."""
    if self.momentum is None:
      return gradient
    momentum = self.momentum[chunk]
    momentum.lerp_(gradient, 1 - beta)
    # A new tensor for NAdam, the state itself otherwise: never write into it.
    return torch.lerp(gradient, momentum, beta) if nadam else momentum

  def precondition(self, chunk: slice, filtered: torch.Tensor) -> torch.Tensor:
    """`filtered` times the inverse root of every mode."""
    result = filtered.to(self.preconditioner_dtype)
    for mode, (_, root) in enumerate(self._halves(chunk)):
      product = root.multiply(_unfold(result, mode))
      result = _fold(product, mode, result.shape)
    return result.to(self.dtype)

  def _halves(
    self, chunk: slice
  ) -> list[
    tuple[symmetric_pairs.SymmetricHalf, symmetric_pairs.SymmetricHalf]
  ]:
    """Factor and root of every mode; views, cut once for each chunk."""
    key = (chunk.start, chunk.stop)
    if key not in self._cut:
      if len(self._cut) > 4 * len(self.blocks):
        self._cut.clear()
      self._cut[key] = [
        (
          symmetric_pairs.factor_half(pair[chunk]),
          symmetric_pairs.root_half(pair[chunk]),
        )
        for pair in self.pairs
      ]
    return self._cut[key]


def make_stacks(
  blocks: Sequence[Block],
  tensors: Sequence[torch.Tensor],
  groups: Sequence[Mapping],
  preconditioner_dtype: torch.dtype,
  device: torch.device | None,
) -> list[list[BlockStack]]:
  """Stack equal blocks, by parameter group.

  Args:
    blocks: those whose state is wanted.
    tensors: the parameters, in the order that the blocks count them.
    groups: the parameter groups.
    preconditioner_dtype: of factors and roots.
    device: of the state; None for the parameters' own.
  """
  members: list[dict[tuple, list[Block]]] = [{} for _ in groups]
  for block in blocks:
    tensor = tensors[block.parameter]
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    key = (block.shape, block.diagonal, dtype, device or tensor.device)
    members[block.group].setdefault(key, []).append(block)
  return [
    [
      BlockStack(equal, group, key[2], preconditioner_dtype, key[3])
      for key, equal in stacks.items()
    ]
    for group, stacks in zip(groups, members, strict=True)
  ]


def _unfold(blocks: torch.Tensor, mode: int) -> torch.Tensor:
  """[n, d_0, ...] -> [n, d_mode, product of the others]."""
  order = blocks.dim() - 1
  if order == 2 and mode == 1:
    return blocks.mT
  return (
    blocks.movedim(mode + 1, 1).flatten(2)
    if order > 1
    else (blocks.unsqueeze(2))
  )


def _fold(rows: torch.Tensor, mode: int, shape: torch.Size) -> torch.Tensor:
  """The inverse of `_unfold`."""
  order = len(shape) - 1
  if order == 1:
    return rows.squeeze(2)
  if order == 2 and mode == 1:
    return rows.mT
  moved = [shape[0], shape[mode + 1]]
  moved += [d for i, d in enumerate(shape) if i not in (0, mode + 1)]
  return rows.reshape(moved).movedim(1, mode + 1)
