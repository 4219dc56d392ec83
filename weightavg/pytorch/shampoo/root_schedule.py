"""Schedule of the inverse roots: the steps at which each block takes them.

As in AlgoPerf's winning submission, all blocks take roots at t = T0 and then at
every t > T0 that F = `precondition_frequency` divides. With `spread_roots` each
block has a phase p in [0, F) instead and takes them at T0 + p and every F steps
after that; before its first root it takes the grafted step. Phases balance the
sum of the cubed dimensions per step. They depend on all blocks, not on those of
one rank, so every number of ranks computes the same.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weightavg.pytorch.shampoo.blocking import Block


def start_step(group: Mapping[str, Any]) -> int:
  """Return T0, the step that takes and uses the first roots."""
  start = group['start_preconditioning_step']
  return group['precondition_frequency'] if start == -1 else start


def phases(
  blocks: Iterable[Block], groups: Sequence[Mapping[str, Any]]
) -> dict[Block, int]:
  """Return each block's phase; 0 in groups that do not spread their roots."""
  loads = [
    [(0, phase) for phase in range(group['precondition_frequency'])]
    for group in groups
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
  """Phases of some blocks, which follow a change of their groups' options.

  A resumed run then continues as the undisturbed one: it begins with phases of
  the options that were saved.
  """

  def __init__(self, blocks: Sequence[Block]) -> None:
    self._blocks = blocks
    self._options: list[tuple[int, bool]] = []
    self._phases: dict[Block, int] = {}

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
  """Return whether a block of this phase has its first root at `step`."""
  return step >= start + phase


def _cubes(block: Block) -> int:
  return 0 if block.diagonal else sum(d**3 for d in block.shape)
