"""When each block's inverse roots are taken.

As in the competition, all at t = T0 and then at every t > T0 that
`precondition_frequency` F divides. Spread over the steps instead, a block has
its own phase p in [0, F) and is due at T0 + p and every F steps from there;
until its first root it takes the grafted step. Phases balance the cubes of the
dimensions and depend on all blocks, not on those of one rank, so that any
number of ranks computes the same.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weightavg.pytorch.shampoo import validation
from weightavg.pytorch.shampoo.blocking import Block


def phases(
  blocks: Iterable[Block], groups: Sequence[Mapping[str, Any]]
) -> dict[Block, int]:
  """The phase of each block; 0 where the group does not spread its roots."""
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


def due_blocks(
  group: Mapping[str, Any], phases: Mapping[Block, int], number: int
) -> set[Block]:
  """Blocks of the group (its number) whose roots are taken in this step."""
  step, start = group['step'], validation.start_step(group)
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
  """Whether a block has had its first root by `step`."""
  return step >= start + phase


def _cubes(block: Block) -> int:
  return 0 if block.diagonal else sum(d**3 for d in block.shape)
