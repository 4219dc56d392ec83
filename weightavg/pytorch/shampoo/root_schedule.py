"""Schedule of the inverse roots: the steps at which each block takes them.

As in AlgoPerf's winning submission, all blocks take roots at t = T0 and then at
every t > T0 that F = `precondition_frequency` divides. With `spread_roots` each
block has a phase p in [0, F) instead and takes them at T0 + p and every F steps
after that; before its first root it takes the grafted step. Phases balance the
sum of the cubed dimensions per step. They depend on all blocks, not on those of
one rank, so every number of ranks computes the same.
"""

import collections
import heapq
from collections.abc import Mapping, Sequence
from typing import Any

from weightavg.pytorch.shampoo.blocking import Block


def start_step(group: Mapping[str, Any]) -> int:
  """Return T0, the step that takes and uses the first roots."""
  start = group['start_preconditioning_step']
  return group['precondition_frequency'] if start == -1 else start


def phases(
  blocks: Sequence[Block], groups: Sequence[Mapping[str, Any]]
) -> dict[Block, int]:
  """Return each block's phase; 0 in groups that do not spread their roots."""
  # A block more than phases takes the next one, at most.
  count = collections.Counter(block.group for block in blocks)
  loads = [
    [
      (0, phase)
      for phase in range(min(group['precondition_frequency'], count[number]))
    ]
    for number, group in enumerate(groups)
  ]
  result = {}
  for block in sorted(blocks, key=_cubes, reverse=True):
    phase = 0
    if groups[block.group]['spread_roots']:
      heap = loads[block.group]
      load, phase = heapq.heappop(heap)
      heapq.heappush(heap, (load + _cubes(block), phase))
    result[block] = phase
  return result


class RootSchedule:
  """Phases of all blocks, which follow a change of their groups' options.

  A resumed run then continues as the undisturbed one: it begins with phases of
  the options that were saved.

  Attributes:
    rooted: blocks that have taken roots. Neither T0 nor a phase tells that once
      F has been changed.
  """

  def __init__(self, blocks: Sequence[Block]) -> None:
    self._blocks = blocks
    self._options: list[tuple[int, bool]] = []
    self._phases: dict[Block, int] = {}
    self.rooted: set[Block] = set()

  def due(self, groups: Sequence[Mapping[str, Any]], number: int) -> set[Block]:
    """Return the blocks of a group that take roots now; they have them then."""
    found = due_blocks(groups[number], self.phases(groups), number)
    self.rooted |= found
    return found

  def expect(self, groups: Sequence[Mapping[str, Any]]) -> None:
    """Set `rooted` for a state that does not tell: as if F were unchanged."""
    self.rooted = {
      block
      for block, phase in self.phases(groups).items()
      for group in [groups[block.group]]
      if is_rooted(group['step'], start_step(group), phase)
    }

  def phases(self, groups: Sequence[Mapping[str, Any]]) -> dict[Block, int]:
    """Return each block's phase at the present options."""
    options = [(g['precondition_frequency'], g['spread_roots']) for g in groups]
    if options != self._options:
      self._options = options
      self._phases = phases(self._blocks, groups)
    return self._phases


def due_blocks(
  group: Mapping[str, Any], phases: Mapping[Block, int], number: int
) -> set[Block]:
  """Return the blocks of group `number` that take roots in this step."""
  step, start = group['step'], start_step(group)
  frequency = group['precondition_frequency']
  if not group['spread_roots']:
    due = step == start or (step > start and step % frequency == 0)
    return {b for b in phases if b.group == number} if due else set()
  return {
    block
    for block, phase in phases.items()
    if block.group == number
    and is_rooted(step, start, phase)
    and (step - start - phase) % frequency == 0
  }


def is_rooted(step: int, start: int, phase: int) -> bool:
  """Return whether a block has its first root at `step` if F is unchanged."""
  return step >= start + phase


def _cubes(block: Block) -> int:
  return 0 if block.diagonal else sum(d**3 for d in block.shape)
