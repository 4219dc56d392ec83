"""One step of one parameter group: factors, roots that are due, weights.

Blocks do not depend on each other, so each chunk of equal blocks goes through
all of it at once, while it is in the cache.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from weightavg.pytorch.shampoo import root_schedule, validation
from weightavg.pytorch.shampoo.block_state import BlockStack
from weightavg.pytorch.shampoo.blocking import Block
from weightavg.pytorch.shampoo.directions import direction_of, gradient_of
from weightavg.pytorch.shampoo.parallel import run_all
from weightavg.pytorch.shampoo.root_update import RootReport, update_roots


def step_group(
  group: Mapping[str, Any],
  number: int,
  stacks: Sequence[BlockStack],
  phases: Mapping[Block, int],
  names: Sequence[str],
  gradients: Mapping[Block, torch.Tensor],
  weights: Mapping[Block, torch.Tensor],
  sent: Mapping[Block, torch.Tensor] | None,
) -> RootReport:
  """Step this rank's blocks of a group that have a gradient.

  Args:
    group: hyperparameters, with `step` already counted.
    number: of the group.
    stacks: the blocks' state.
    phases: when each block's roots are taken.
    names: of all parameters.
    gradients: views by block, of all ranks' blocks.
    weights: the same of the weights, changed in place unless `sent` is given.
    sent: by block, where the updates go instead.

  Returns:
    The roots that did not go as usual.
  """
  due = root_schedule.due_blocks(group, phases, number)
  step, start = group['step'], validation.start_step(group)
  # Blocks with a gradient, and whether they are preconditioned: a chunk must
  # agree on that, and on being due.
  kinds = {
    block: (
      block in due,
      root_schedule.is_rooted(step, start, phases[block])
      and not block.diagonal,
    )
    for block in gradients
    if block.group == number
  }
  idle = due.difference(gradients)
  tasks: list[tuple[BlockStack, slice, bool, bool | None]] = [
    (stack, chunk, True, None)
    for stack in stacks
    for chunk in stack.chunks(dict.fromkeys(idle, True))
  ]
  tasks += [
    (stack, chunk, *kinds[stack.blocks[chunk][0]])
    for stack in stacks
    for chunk in stack.chunks(kinds)
  ]
  tasks.sort(key=_cost, reverse=True)
  work = functools.partial(_step_chunk, group, names, gradients, weights, sent)
  device = next(iter(weights.values())).device if weights else None
  total = RootReport()
  for report in run_all(work, tasks, device or torch.device('cpu')):
    total.retried += report.retried
    total.kept += report.kept
  return total


def _step_chunk(
  group: Mapping[str, Any],
  names: Sequence[str],
  gradients: Mapping[Block, torch.Tensor],
  weights: Mapping[Block, torch.Tensor],
  sent: Mapping[Block, torch.Tensor] | None,
  stack: BlockStack,
  chunk: slice,
  due: bool,
  preconditioned: bool | None,
) -> RootReport:
  """All of a step for a chunk; `preconditioned` is None without gradients."""
  gradient = None
  if preconditioned is not None:
    gradient = gradient_of(group, stack, chunk, gradients, weights)
    stack.add_factors(chunk, gradient, group['betas'][1])
  report = RootReport()
  if due:
    report = update_roots(group, stack, chunk, names)
  if gradient is None:
    return report
  direction = direction_of(group, stack, chunk, gradient, bool(preconditioned))
  targets = [weights[block] for block in stack.blocks[chunk]]
  if group['weight_decay'] and group['use_decoupled_weight_decay']:
    torch._foreach_add_(
      list(direction.unbind()), targets, alpha=group['weight_decay']
    )
  if stack.velocity is not None:
    mu = group['momentum']
    velocity = stack.velocity[chunk].lerp_(direction, 1 - mu)
    direction = (
      torch.lerp(direction, velocity, mu) if group['use_nesterov'] else velocity
    )
  rate = -float(group['lr'])
  if sent is None:
    torch._foreach_add_(targets, list(direction.unbind()), alpha=rate)
  else:
    places = [sent[block] for block in stack.blocks[chunk]]
    torch._foreach_copy_(places, list((direction * rate).unbind()))
  return report


def _cost(task: tuple[BlockStack, slice, bool, bool | None]) -> float:
  """Rank tasks: the longest must not come last."""
  stack, chunk, due, _ = task
  count = chunk.stop - chunk.start
  return count * sum(
    stack.blocks[0].numel * d + 20 * d**3 * due for d in stack.shape
  )
