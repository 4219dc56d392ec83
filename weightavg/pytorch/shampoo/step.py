"""One Shampoo step in the order of the papers, batched over equal blocks.

Read `reference.py` first: it makes the same step for one block at a time. With
t the step, G the gradient of a block, W its weights and k its modes, the
functions below are, in order,

  gradient   G <- G + weight_decay W, unless the decay is decoupled
  factors    A_k <- beta2 A_k + (1 - beta2) G_(k) G_(k)^T
  roots      X_k <- (A_k / (1 - beta2^t) + epsilon I)^(-q), every F steps
  filter     m <- beta1 m + (1 - beta1) G;  f = m / (1 - beta1^t)
  grafting   a = the step of a diagonal method, with f for its numerator
  direction  S = f multiplied by X_k on every mode;  P = S |a| / |S|
  decay      P <- P + weight_decay W, if it is decoupled
  momentum   h <- mu h + (1 - mu) P
  step       W <- W - lr P

Blocks do not depend on each other, so each chunk of equal blocks makes its
whole step while its tensors are in the cache. `step_group` orders the chunks.

Two flaws of AlgoPerf's winning submission are kept for comparability. With
`use_nadam` the bias correction is 1 - beta1^t although the weights sum to
1 - beta1^(t+1), so the first steps are up to 1 + beta1 times too long. A block
without a gradient is not updated, but t and all bias corrections advance.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch

from weightavg.pytorch.shampoo import grafting, symmetric_pairs
from weightavg.pytorch.shampoo.block_state import BlockStack, fold, unfold
from weightavg.pytorch.shampoo.blocking import Block
from weightavg.pytorch.shampoo.inverse_roots import half_roots
from weightavg.pytorch.shampoo.parallel import run_all
from weightavg.pytorch.shampoo.precision import full_float32_products

# Elements decomposed in one call; bounds its memory to a few times as many.
_EIGH_ELEMENTS = 1 << 26


@dataclasses.dataclass
class RootReport:
  """Names, `parameter[block, mode]`, of the roots that needed a fallback.

  Args:
    retried: decomposed a second time, in float64.
    kept: still the previous root, or the identity, because the factor was not
      finite or the decomposition in float64 failed as well.
  """

  retried: list[str] = dataclasses.field(default_factory=list)
  kept: list[str] = dataclasses.field(default_factory=list)


def _step_blocks(
  group: Mapping[str, Any],
  names: Sequence[str],
  gradients: Mapping[Block, torch.Tensor],
  weights: Mapping[Block, torch.Tensor],
  sent: Mapping[Block, torch.Tensor] | None,
  stack: BlockStack,
  chunk: slice,
  is_due: bool,
  is_preconditioned: bool | None,
) -> RootReport:
  """Make the whole step of a chunk of equal blocks.

  Args:
    group: hyperparameters, with t as `step`.
    names: names of all parameters.
    gradients: views of the gradients by block.
    weights: views of the weights by block.
    sent: as in `step_group`.
    stack: state of the blocks.
    chunk: range of blocks in the stack.
    is_due: whether to take new roots.
    is_preconditioned: whether the blocks have roots already; None for blocks
      without a gradient, which are due.
  """
  if is_preconditioned is None:
    return _update_roots(group, stack, chunk, names)
  gradient = _gradient(group, stack, chunk, gradients, weights)
  _update_factors(group, stack, chunk, gradient)
  report = RootReport()
  if is_due:
    report = _update_roots(group, stack, chunk, names)
  filtered = _filter(group, stack, chunk, gradient)
  grafted = _graft(group, stack, chunk, gradient, filtered)
  direction = _direction(
    group, stack, chunk, filtered, grafted, is_preconditioned
  )
  targets = [weights[block] for block in stack.blocks[chunk]]
  if group['weight_decay'] and group['use_decoupled_weight_decay']:
    torch._foreach_add_(
      list(direction.unbind()), targets, alpha=group['weight_decay']
    )
  direction = _momentum(group, stack, chunk, direction)
  rate = -float(group['lr'])
  if sent is None:
    torch._foreach_add_(targets, list(direction.unbind()), alpha=rate)
  else:
    places = [sent[block] for block in stack.blocks[chunk]]
    torch._foreach_copy_(places, list((direction * rate).unbind()))
  return report


def _gradient(
  group: Mapping[str, Any],
  stack: BlockStack,
  chunk: slice,
  gradients: Mapping[Block, torch.Tensor],
  weights: Mapping[Block, torch.Tensor],
) -> torch.Tensor:
  """Stack the gradients; add the decay if it is not decoupled.

  The result may share memory with the gradients and must not be changed.
  """
  gradient = stack.gather(chunk, gradients)
  if group['weight_decay'] and not group['use_decoupled_weight_decay']:
    decay = stack.gather(chunk, weights)
    gradient = gradient.add(decay, alpha=group['weight_decay'])
  return gradient


def _update_factors(
  group: Mapping[str, Any],
  stack: BlockStack,
  chunk: slice,
  gradient: torch.Tensor,
) -> None:
  """A_k <- beta2 A_k + (1 - beta2) G_(k) G_(k)^T; a plain sum for beta2 = 1."""
  beta2 = group['betas'][1]
  keep, add = (1.0, 1.0) if beta2 == 1 else (beta2, 1 - beta2)
  gradient = gradient.to(stack.preconditioner_dtype)
  for mode, (factor, _) in enumerate(stack.halves(chunk)):
    factor.add_gram(unfold(gradient, mode), keep, add)


def _update_roots(
  group: Mapping[str, Any],
  stack: BlockStack,
  chunk: slice,
  names: Sequence[str],
) -> RootReport:
  """X_k <- (A_k / (1 - beta2^t) + epsilon I)^(-q).

  A root that cannot be computed in either dtype keeps its previous value.
  """
  step, beta2 = group['step'], group['betas'][1]
  correction = 1.0 if beta2 == 1 else 1 - beta2**step
  exponent = _exponent(group, len(stack.shape))
  report = RootReport()
  for mode, pair in enumerate(stack.pairs):
    count = max(1, _EIGH_ELEMENTS // pair[0].numel())
    for begin in range(chunk.start, chunk.stop, count):
      end = min(begin + count, chunk.stop)
      factors = symmetric_pairs.factor_half(pair[begin:end]).unpack()
      halves, good, retried = half_roots(
        factors.div_(correction), exponent, group['epsilon']
      )
      labels = [
        f'{names[block.parameter]}[block {block.index}, mode {mode}]'
        for block in stack.blocks[begin:end]
      ]
      report.retried += [labels[index] for index in retried]
      report.kept += [
        label
        for label, is_good in zip(labels, good, strict=True)
        if not is_good
      ]
      if all(good):
        runs = [(0, len(good))]
      else:
        runs = [(i, i + 1) for i, is_good in enumerate(good) if is_good]
      for first, last in runs:
        root = symmetric_pairs.root_half(pair[begin + first : begin + last])
        # Once in F steps full precision costs nothing, and the root stays exact
        # in checkpoints. The products of every step follow the host's setting.
        with full_float32_products():
          root.add_gram(halves[first:last], keep=0.0, add=1.0)
  return report


def _exponent(group: Mapping[str, Any], order: int) -> float:
  """Return q: exponent_multiplier / (2 order) unless it is overridden."""
  override = group['inv_root_override']
  if isinstance(override, (list, tuple)):
    root = override[order] if order < len(override) else 2 * order
  else:
    root = override if override > 0 else 2 * order
  return group['exponent_multiplier'] / root


def _filter(
  group: Mapping[str, Any],
  stack: BlockStack,
  chunk: slice,
  gradient: torch.Tensor,
) -> torch.Tensor:
  """m <- beta1 m + (1 - beta1) G; return f (1 - beta1^t).

  The result may be the gradient or m itself and must not be changed.
  """
  if stack.momentum is None:
    return gradient
  beta1 = group['betas'][0]
  momentum = stack.momentum[chunk]
  momentum.lerp_(gradient, 1 - beta1)
  # NAdam's look-ahead: beta1 m + (1 - beta1) G.
  return (
    torch.lerp(gradient, momentum, beta1) if group['use_nadam'] else momentum
  )


def _graft(
  group: Mapping[str, Any],
  stack: BlockStack,
  chunk: slice,
  gradient: torch.Tensor,
  filtered: torch.Tensor,
) -> torch.Tensor:
  """Update v of the grafting method; return a (1 - beta1^t)."""
  beta = group['grafting_beta2']
  beta = group['betas'][1] if beta is None else beta
  moment = None
  method = stack.grafting(group)
  if stack.second_moment is not None:
    moment = stack.second_moment[chunk]
    grafting.update_second_moment(method, moment, gradient, beta)
  return grafting.grafted_direction(
    method,
    filtered,
    moment,
    beta,
    group['grafting_epsilon'],
    group['step'],
  )


def _direction(
  group: Mapping[str, Any],
  stack: BlockStack,
  chunk: slice,
  filtered: torch.Tensor,
  grafted: torch.Tensor,
  is_preconditioned: bool,
) -> torch.Tensor:
  """Return P, a new tensor: a before the first root, then S |a| / |S|.

  Norms are per block, and 1e-16 is added to |S|. Without grafting P is 0 before
  the first root, then S.
  """
  correction = 1 / (1 - group['betas'][0] ** group['step'])
  is_grafted = stack.grafting(group) is not None
  if not is_preconditioned:
    if not is_grafted:
      return torch.zeros_like(filtered)
    return grafted * correction
  shampoo = _precondition(stack, chunk, filtered)
  if not is_grafted:
    return shampoo.mul_(correction)
  # S and a both lack the correction c: P = c S |c a| / (|c S| + 1e-16).
  ratio = _norms(grafted).mul_(correction**2)
  ratio.div_(_norms(shampoo).mul_(correction).add_(1e-16))
  return shampoo.mul_(ratio)


def _precondition(
  stack: BlockStack, chunk: slice, filtered: torch.Tensor
) -> torch.Tensor:
  """Multiply by X_k on every mode k."""
  result = filtered.to(stack.preconditioner_dtype)
  for mode, (_, root) in enumerate(stack.halves(chunk)):
    product = root.multiply(unfold(result, mode))
    result = fold(product, mode, result.shape)
  return result.to(stack.dtype)


def _norms(blocks: torch.Tensor) -> torch.Tensor:
  """Return each block's Frobenius norm, shaped to multiply the blocks with."""
  dims = tuple(range(1, blocks.dim()))
  return torch.linalg.vector_norm(blocks, dim=dims, keepdim=True)


def _momentum(
  group: Mapping[str, Any],
  stack: BlockStack,
  chunk: slice,
  direction: torch.Tensor,
) -> torch.Tensor:
  """h <- mu h + (1 - mu) P; return h, or (1 - mu) P + mu h with Nesterov."""
  if stack.velocity is None:
    return direction
  mu = group['momentum']
  velocity = stack.velocity[chunk].lerp_(direction, 1 - mu)
  if group['use_nesterov']:
    return torch.lerp(direction, velocity, mu)
  return velocity


def step_group(
  group: Mapping[str, Any],
  number: int,
  stacks: Sequence[BlockStack],
  due: Set[Block],
  rooted: Set[Block],
  names: Sequence[str],
  gradients: Mapping[Block, torch.Tensor],
  weights: Mapping[Block, torch.Tensor],
  sent: Mapping[Block, torch.Tensor] | None,
) -> RootReport:
  """Step this rank's blocks of one parameter group.

  Blocks without a gradient take the roots that are due and nothing else.

  Args:
    group: hyperparameters, with this step counted in `step`.
    number: index of the group.
    stacks: state of this rank's blocks.
    due: its blocks that take roots.
    rooted: blocks that have roots, or take them.
    names: names of all parameters.
    gradients: views of the gradients by block, of all ranks' blocks.
    weights: views of the weights by block, changed in place if `sent` is None.
    sent: where to write the updates -lr P instead, by block.
  """
  # Blocks of one chunk must agree on both arguments.
  kinds = {
    block: (block in due, block in rooted and not block.diagonal)
    for block in gradients
    if block.group == number
  }
  idle = [block for block in due if block not in gradients]
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
  # The longest task must not start last.
  tasks.sort(key=_cost, reverse=True)
  work = functools.partial(_step_blocks, group, names, gradients, weights, sent)
  device = next(iter(weights.values())).device if weights else None
  total = RootReport()
  for report in run_all(work, tasks, device or torch.device('cpu')):
    total.retried += report.retried
    total.kept += report.kept
  return total


def _cost(task: tuple[BlockStack, slice, bool, bool | None]) -> float:
  """Estimate a task's multiplications."""
  stack, chunk, is_due, _ = task
  count = chunk.stop - chunk.start
  return count * sum(
    stack.blocks[0].numel * d + 20 * d**3 * is_due for d in stack.shape
  )
