"""When each block's inverse roots are taken.

As in the competition, all at t = T0 and then at every t > T0 that
`precondition_frequency` F divides. Spread over the steps instead, a block has
its own phase p in [0, F) and is due at T0 + p and every F steps from there;
until its first root it takes the grafted step. Phases balance the cubes of the
dimensions and depend on all blocks, not on those of one rank, so that any
number of ranks computes the same.
"""

import heapq
from collections.abc import Sequence

from weightavg.pytorch.shampoo.blocking import Block


def phases(
  blocks: Sequence[Block], frequency: int, spread: bool
) -> dict[Block, int]:
  """The phase of each block; all 0 unless spread."""
  if not spread:
    return dict.fromkeys(blocks, 0)
  loads = [(0, phase) for phase in range(frequency)]
  result = {}
  for block in sorted(blocks, key=_cubes, reverse=True):
    load, phase = heapq.heappop(loads)
    result[block] = phase
    heapq.heappush(loads, (load + _cubes(block), phase))
  return result


def is_due(step: int, start: int, frequency: int, phase: int, spread: bool):
  """Whether a block's roots are taken at `step`."""
  if spread:
    return step >= start + phase and (step - start - phase) % frequency == 0
  return step == start or (step > start and step % frequency == 0)


def is_rooted(step: int, start: int, phase: int) -> bool:
  """Whether a block has had its first root by `step`."""
  return step >= start + phase


def _cubes(block: Block) -> int:
  return 0 if block.diagonal else sum(d**3 for d in block.shape)
