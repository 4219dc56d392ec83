"""The direction of a chunk of equal blocks, up to weight decay and momentum.

With X_k the inverse roots, f the filtered gradient and a the grafted direction,
P = a until a block has its roots, and then, with norms per block,

  P = S |a| / (|S| + 1e-16),   S = f multiplied on every mode k by X_k.

Two slips of the competition's version are kept. Under NAdam the bias correction
is 1 - beta1^t although the weights sum to 1 - beta1^(t+1): steps are 1 + beta1
times too long at first, and right later. And blocks without a gradient stand
still while t, and so all corrections, go on.
"""

from collections.abc import Mapping
from typing import Any

import torch

from weightavg.pytorch.shampoo.block_state import BlockStack
from weightavg.pytorch.shampoo.blocking import Block
from weightavg.pytorch.shampoo.grafting import (
  grafted_direction,
  update_second_moment,
)


def gradient_of(
  group: Mapping[str, Any],
  stack: BlockStack,
  chunk: slice,
  gradients: Mapping[Block, torch.Tensor],
  weights: Mapping[Block, torch.Tensor],
) -> torch.Tensor:
  """The chunk's gradient, with the decay added where it is not decoupled.

  May share memory with the gradients: not to be written into.
  """
  gradient = stack.gather(chunk, gradients)
  if group['weight_decay'] and not group['use_decoupled_weight_decay']:
    decay = stack.gather(chunk, weights)
    gradient = gradient.add(decay, alpha=group['weight_decay'])
  return gradient


def direction_of(
  group: Mapping[str, Any],
  stack: BlockStack,
  chunk: slice,
  gradient: torch.Tensor,
  preconditioned: bool,
) -> torch.Tensor:
  """P, a new tensor; updates the chunk's moments."""
  step = group['step']
  beta1, beta2 = group['betas']
  beta_g = group['grafting_beta2']
  beta_g = beta2 if beta_g is None else beta_g
  filtered = stack.filter(chunk, gradient, beta1, group['use_nadam'])
  correction = 1 / (1 - beta1**step)
  moment = None
  if stack.second_moment is not None:
    moment = stack.second_moment[chunk]
    update_second_moment(stack.grafting, moment, gradient, beta_g)
  grafted = grafted_direction(
    stack.grafting,
    filtered,
    moment,
    beta_g,
    group['grafting_epsilon'],
    step,
  )
  if not preconditioned:
    if stack.grafting is None:
      return torch.zeros_like(filtered)
    return grafted * correction
  shampoo = stack.precondition(chunk, filtered)
  if stack.grafting is None:
    return shampoo.mul_(correction)
  # S and a both carry the correction c: c S |c a| / (|c S| + 1e-16).
  ratio = _norms(grafted).mul_(correction**2)
  ratio.div_(_norms(shampoo).mul_(correction).add_(1e-16))
  return shampoo.mul_(ratio)


def _norms(blocks: torch.Tensor) -> torch.Tensor:
  """Frobenius norm of each block, shaped to multiply the blocks with."""
  dims = tuple(range(1, blocks.dim()))
  return torch.linalg.vector_norm(blocks, dim=dims, keepdim=True)
