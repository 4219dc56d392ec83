"""Who computes which block, and how all ranks get the result.

DDP has averaged the gradients, so every rank could do all the work. Instead
consecutive ranks form groups; within a group each block has one owner, who
alone holds its state, and one all-gather a step hands round what the owners
computed. Groups duplicate each other's work and never talk to each other.
"""

import dataclasses
import heapq
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from weightavg.pytorch.shampoo.blocking import Block

# Multiplications that take as long, per d^3, as one eigendecomposition, and,
# per element, as the elementwise part of a step (measured on a CPU; only the
# balance between ranks depends on them).
_ROOT_COST = 12.0
_ELEMENT_COST = 100.0

# torch 2.13 gave the collective a new name and warns of the old one.
_ALL_GATHER = (
  'all_gather_single'
  if hasattr(dist, 'all_gather_single')
  else 'all_gather_into_tensor'
)

# Blocks start at multiples of this many elements in the flat buffers.
_ALIGN = 16


@dataclasses.dataclass(frozen=True)
class RankGroup:
  """The ranks that share the work, and the calling one among them.

  Args:
    size: number of ranks in the group.
    rank: the caller's place in the group.
    first: whether this is the group with rank 0, the one that saves.
    process_group: carries the results of the steps; None if size is 1.
    saving_group: gloo group of the first group for checkpoints; None outside
      of it or if size is 1.
  """

  size: int = 1
  rank: int = 0
  first: bool = True
  process_group: dist.ProcessGroup | None = None
  saving_group: dist.ProcessGroup | None = None


def form_groups(
  process_group: dist.ProcessGroup | None, ranks_per_group: int
) -> RankGroup:
  """Divide the ranks into groups; every rank must call this.

  Args:
    process_group: the ranks to divide; None for all.
    ranks_per_group: consecutive ranks that share the work, a divisor of the
      number of ranks, or -1 for all of them.

  Raises:
    ValueError: if `ranks_per_group` does not divide the number of ranks.
  """
  if isinstance(ranks_per_group, bool) or not isinstance(ranks_per_group, int):
    raise ValueError(
      f'Invalid num_trainers_per_group={ranks_per_group!r}. '
      'Must be an integer >= 1, or -1.'
    )
  initialized = dist.is_available() and dist.is_initialized()
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
  ranks = dist.get_process_group_ranks(process_group or dist.group.WORLD)
  first = me < size
  if size == 1:
    return RankGroup(first=first)
  begin = me - me % size
  members = ranks[begin : begin + size]
  # Only the members meet here, so subsets of the world work as well.
  mine = dist.new_group(members, use_local_synchronization=True)
  saving = None
  if first:
    saving = dist.new_group(
      members, backend='gloo', use_local_synchronization=True
    )
  return RankGroup(size, me % size, first, mine, saving)


def assign(
  blocks: Sequence[Block], frequencies: Sequence[int], ranks: int
) -> dict[Block, int]:
  """The owner of each block: the most expensive first, to the least loaded.

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
  """Estimated multiplications of a step, roots spread over the steps."""
  cost = _ELEMENT_COST * block.numel
  if not block.diagonal:
    cost += sum(
      1.5 * block.numel * d + _ROOT_COST * d**3 / frequency for d in block.shape
    )
  return cost


class Exchange:
  """One all-gather of flat buffers: a segment for each rank, its blocks in it.

  Segments are padded to the largest, so each step a rank sends the largest and
  receives `size` of them. What is sent are the new weights where the dtype of
  communication holds them exactly, as in the competition; otherwise the
  updates, so that only steps are rounded. All ranks then write the same bits,
  the owner too.

  Args:
    owners: the owner's rank of each block.
    ranks: who takes part.
    tensors: the parameters, all on one device.
    dtype: of the buffers; None for the widest of the parameters, at least
      float32.
    weights: whether weights are sent rather than updates; None for the rule
      above.
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

  @property
  def bytes(self) -> int:
    """Memory of the buffers."""
    count = self._send.numel() + self._receive.numel()
    return count * self._send.element_size()

  def share(self, weights: Mapping[Block, torch.Tensor]) -> None:
    """Bring the weights of the blocks that had a gradient up to date."""
    if self.weights:
      mine = [block for block in self.sent if block in weights]
      if mine:
        torch._foreach_copy_(
          [self.sent[block] for block in mine],
          [weights[block] for block in mine],
        )
    gather = getattr(dist, _ALL_GATHER)
    gather(self._receive, self._send, group=self._group)
    if not weights:
      return
    received = [self._received[block] for block in weights]
    if self.weights:
      torch._foreach_copy_(list(weights.values()), received)
    else:
      torch._foreach_add_(list(weights.values()), received)
