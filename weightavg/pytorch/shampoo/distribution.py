"""Distribute blocks over ranks and exchange their new weights.

DDP has averaged the gradients, so every rank could step every block. Instead
consecutive ranks form groups. Within a group each block has one owner, which
alone holds its state, and one all-gather per step brings the owners' results to
all ranks of the group. Groups repeat each other's work without communication.
"""

import dataclasses
import heapq
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from weightavg.pytorch.gather import all_gather
from weightavg.pytorch.shampoo.blocking import Block

# Cost of an eigendecomposition per d^3, and of a step's elementwise part per
# element, in multiplications of a matrix product. Measured on a CPU; only the
# balance between ranks depends on them.
_ROOT_COST = 12.0
_ELEMENT_COST = 100.0

# Blocks start at multiples of this many elements in the flat buffers.
_ALIGN = 16


@dataclasses.dataclass(frozen=True)
class RankGroup:
  """Ranks that share the work, seen from one of them.

  Args:
    size: number of ranks in the group.
    rank: this rank's index in the group.
    first: whether the group contains rank 0, which saves.
    process_group: process group of the exchange; None if size is 1.
    saving_group: gloo group for checkpoints; None if size is 1 and in all
      groups but the first.
    everyone: process group of all ranks of all groups; None if it is one.
  """

  size: int = 1
  rank: int = 0
  first: bool = True
  process_group: dist.ProcessGroup | None = None
  saving_group: dist.ProcessGroup | None = None
  everyone: dist.ProcessGroup | None = None


def form_groups(
  process_group: dist.ProcessGroup | None, ranks_per_group: int
) -> RankGroup:
  """Divide the ranks into groups; collective over `process_group`.

  Args:
    process_group: the ranks to divide; None for all.
    ranks_per_group: number of consecutive ranks that share the work, a divisor
      of the number of ranks, or -1 for all.

  Raises:
    ValueError: if `ranks_per_group` does not divide the number of ranks, or
      this rank is none of them.
  """
  if isinstance(ranks_per_group, bool) or not isinstance(ranks_per_group, int):
    raise ValueError(
      f'Invalid num_trainers_per_group={ranks_per_group!r}. '
      'Must be an integer >= 1, or -1.'
    )
  initialized = dist.is_available() and dist.is_initialized()
  if initialized and dist.get_rank(process_group) < 0:
    raise ValueError('Invalid process_group. Must contain this rank.')
  world = dist.get_world_size(process_group) if initialized else 1
  size = world if ranks_per_group == -1 else ranks_per_group
  if size < 1 or world % size:
    raise ValueError(
      f'Invalid num_trainers_per_group={ranks_per_group}. '
      f'Must divide the number of ranks, {world}, or be -1.'
    )
  if world == 1:
    return RankGroup()
  me = dist.get_rank(process_group)
  everyone = process_group or dist.group.WORLD
  ranks = dist.get_process_group_ranks(everyone)
  first = me < size
  if size == 1:
    return RankGroup(first=first, everyone=everyone)
  begin = me - me % size
  members = ranks[begin : begin + size]
  saving = None
  if world < dist.get_world_size():
    # The others do not come here: the members alone synchronise, by a name
    # that holds the number of groups that each has made.
    mine = dist.new_group(members, use_local_synchronization=True)
    if first:
      saving = dist.new_group(
        members, backend='gloo', use_local_synchronization=True
      )
  else:
    made = [dist.new_group(ranks[i : i + size]) for i in range(0, world, size)]
    mine = made[me // size]
    saving = dist.new_group(ranks[:size], backend='gloo')
  return RankGroup(
    size, me % size, first, mine, saving if first else None, everyone
  )


def assign(
  blocks: Sequence[Block], frequencies: Sequence[int], ranks: int
) -> dict[Block, int]:
  """Return the owner of each block: longest processing time first.

  Args:
    blocks: all blocks.
    frequencies: steps between roots, by parameter group.
    ranks: number of ranks in a group.
  """
  costs = {block: _cost(block, frequencies[block.group]) for block in blocks}
  loads = [(0.0, rank) for rank in range(ranks)]
  owners = {}
  for block in sorted(blocks, key=costs.__getitem__, reverse=True):
    load, rank = heapq.heappop(loads)
    owners[block] = rank
    heapq.heappush(loads, (load + costs[block], rank))
  return owners


def _cost(block: Block, frequency: int) -> float:
  """Estimate a step's multiplications, with roots amortised."""
  cost = _ELEMENT_COST * block.numel
  if not block.diagonal:
    cost += sum(
      1.5 * block.numel * d + _ROOT_COST * d**3 / frequency for d in block.shape
    )
  return cost


class Exchange:
  """All-gather of flat buffers with one segment per rank for its blocks.

  Segments are padded to the largest. If the dtype holds the weights exactly,
  owners send new weights, otherwise updates, so that rounding affects the step
  alone. Owners write the rounded values too, so all ranks hold equal bits.

  Args:
    owners: rank of each block's owner.
    ranks: the ranks that exchange.
    tensors: all parameters, on one device.
    dtype: dtype of the buffers; None for the parameters' widest, at least
      float32.
    weights: send weights (True) or updates (False); None for the rule above.

  Attributes:
    weights: whether weights are sent.
    sent: this rank's segment, by block.
  """

  def __init__(
    self,
    owners: Mapping[Block, int],
    ranks: RankGroup,
    tensors: Sequence[torch.Tensor],
    dtype: torch.dtype | None,
    weights: bool | None,
  ) -> None:
    widest = torch.float32
    for tensor in tensors:
      widest = torch.promote_types(widest, tensor.dtype)
    dtype = dtype or widest
    exact = torch.promote_types(dtype, widest) == dtype
    self.weights = exact if weights is None else weights
    self._group = ranks.process_group
    places = {}
    filled = [0] * ranks.size
    for block, owner in owners.items():
      places[block] = (owner, filled[owner])
      filled[owner] += -(-block.numel // _ALIGN) * _ALIGN
    segment = max(filled)
    device = tensors[0].device
    self._send = torch.zeros(segment, dtype=dtype, device=device)
    self._receive = torch.zeros(
      ranks.size * segment, dtype=dtype, device=device
    )
    self.sent: dict[Block, torch.Tensor] = {}
    self._received: dict[Block, torch.Tensor] = {}
    for block, (owner, start) in places.items():
      stop = start + block.numel
      theirs = self._receive[owner * segment :][start:stop]
      self._received[block] = theirs.view(block.shape)
      if owner == ranks.rank:
        self.sent[block] = self._send[start:stop].view(block.shape)

  def share(self, weights: Mapping[Block, torch.Tensor]) -> None:
    """Exchange the results of a step.

    Args:
      weights: views of the weights by block, for all blocks with a gradient.
    """
    if self.weights:
      mine = [block for block in self.sent if block in weights]
      if mine:
        torch._foreach_copy_(
          [self.sent[block] for block in mine],
          [weights[block] for block in mine],
        )
    all_gather(self._receive, self._send, self._group)
    if not weights:
      return
    received = [self._received[block] for block in weights]
    if self.weights:
      torch._foreach_copy_(list(weights.values()), received)
    else:
      torch._foreach_add_(list(weights.values()), received)
