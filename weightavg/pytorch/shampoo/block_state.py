"""State of equal blocks in stacked tensors.

Operations are batched over chunks of consecutive blocks. On a GPU a chunk holds
all of them, on a CPU as many as stay in the cache between two operations.
"""

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch

from weightavg.pytorch.shampoo import grafting as grafts
from weightavg.pytorch.shampoo import symmetric_pairs
from weightavg.pytorch.shampoo.blocking import Block

# Elements of a chunk on a CPU.
_CPU_CHUNK = 1 << 17


class BlockStack:
  """State of blocks of one shape, dtype and device, stacked along dim 0.

  Attributes:
    blocks: the n blocks, in the order of dim 0.
    shape: shape of each block.
    diagonal: whether the blocks have no factors.
    dtype: dtype of m, v and h.
    preconditioner_dtype: dtype of the factors and roots.
    momentum: m, [n, *shape], or None for beta1 = 0.
    second_moment: v of the grafting method, [n, *shape], or None if the method
      has none.
    velocity: h, the momentum of the update, [n, *shape], or None for mu = 0.
    pairs: for each mode k of size d the factor A_k and its root X_k,
      [n, d, d + 1], laid out as in `symmetric_pairs`.
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

    def zeros(wanted: bool) -> torch.Tensor | None:
      if not wanted:
        return None
      shape = (len(self.blocks), *self.shape)
      return torch.zeros(shape, dtype=dtype, device=device)

    self.momentum = zeros(group['betas'][0] > 0)
    self.second_moment = zeros(grafts.has_second_moment(self.grafting(group)))
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

  def grafting(self, group: Mapping) -> str | None:
    """Return the group's grafting method, which a loaded state may change.

    Blocks without factors take no other step than Adam's.
    """
    return 'adam' if self.diagonal else group['grafting']

  def check(self, group: Mapping) -> None:
    """Raise ValueError if a changed group needs an average without state."""
    beta1, mu, graft = group['betas'][0], group['momentum'], group['grafting']
    has_second = grafts.has_second_moment(self.grafting(group))
    for option, value, is_needed, average in (
      ('betas[0]', beta1, beta1 > 0, self.momentum),
      ('grafting', graft, has_second, self.second_moment),
      ('momentum', mu, mu > 0, self.velocity),
    ):
      if is_needed and average is None:
        raise ValueError(
          f'Invalid {option}={value!r}. The optimizer was built without this '
          'average and has no state for it.'
        )

  def __getstate__(self) -> dict[str, Any]:
    # Pickle would give views a memory of their own.
    return self.__dict__ | {'_cut': {}}

  def tensors(self) -> dict[str, torch.Tensor]:
    """Return all state tensors by name."""
    named = {
      'momentum': self.momentum,
      'second_moment': self.second_moment,
      'velocity': self.velocity,
    }
    named |= {f'pair_{mode}': pair for mode, pair in enumerate(self.pairs)}
    return {name: t for name, t in named.items() if t is not None}

  def chunks(self, classes: Mapping[Block, Hashable]) -> Iterator[slice]:
    """Yield ranges of consecutive blocks of one class.

    Args:
      classes: class by block; blocks without one are left out.
    """
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
    """Stack the blocks' views, [n, *shape] in the state's dtype.

    A single block is returned as a view where its dtype allows it.
    """
    parts = [views[block] for block in self.blocks[chunk]]
    stacked = parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)
    return stacked.to(self.dtype)

  def halves(
    self, chunk: slice
  ) -> list[
    tuple[symmetric_pairs.SymmetricHalf, symmetric_pairs.SymmetricHalf]
  ]:
    """Return (factor, root) of every mode: views, made once for each chunk."""
    key = (chunk.start, chunk.stop)
    found = self._cut.get(key)
    if found is None:
      if len(self._cut) > 4 * len(self.blocks):
        # Other threads may have just looked: each returns its own.
        self._cut.clear()
      found = self._cut[key] = [
        (
          symmetric_pairs.factor_half(pair[chunk]),
          symmetric_pairs.root_half(pair[chunk]),
        )
        for pair in self.pairs
      ]
    return found


def make_stacks(
  blocks: Sequence[Block],
  tensors: Sequence[torch.Tensor],
  groups: Sequence[Mapping],
  preconditioner_dtype: torch.dtype,
  device: torch.device | None,
) -> list[list[BlockStack]]:
  """Allocate the state of blocks, stacked where they are equal.

  Args:
    blocks: the blocks to allocate for.
    tensors: all parameters, as indexed by `Block.parameter`.
    groups: all parameter groups.
    preconditioner_dtype: dtype of the factors and roots.
    device: device of the state; None for the parameters' own.

  Returns:
    The stacks of each parameter group.
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


def unfold(blocks: torch.Tensor, mode: int) -> torch.Tensor:
  """Return G_(mode): [n, d_0, ...] -> [n, d_mode, product of the others]."""
  order = blocks.dim() - 1
  if order == 2 and mode == 1:
    return blocks.mT
  return (
    blocks.movedim(mode + 1, 1).flatten(2)
    if order > 1
    else (blocks.unsqueeze(2))
  )


def fold(rows: torch.Tensor, mode: int, shape: torch.Size) -> torch.Tensor:
  """Undo `unfold`: `shape` is the shape before it."""
  order = len(shape) - 1
  if order == 1:
    return rows.squeeze(2)
  if order == 2 and mode == 1:
    return rows.mT
  moved = [shape[0], shape[mode + 1]]
  moved += [d for i, d in enumerate(shape) if i not in (0, mode + 1)]
  return rows.reshape(moved).movedim(1, mode + 1)
