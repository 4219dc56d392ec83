"""Shampoo as slow as its formulas: read this first.

One parameter, one block at a time: full matrices, einsum contractions, one
state dictionary per block, no code shared with the optimizer. The tests hold
`DistributedShampoo` to it in float64, step by step and option by option.

Sources: Gupta et al. 2018 (arXiv 1802.09568, algorithm 2), Anil et al. 2020
(2002.09018, grafting), Shi et al. 2023 (2309.06497, blocks and merged dims).
"""

import itertools
import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def merged_shape(shape: Sequence[int], limit: int) -> list[int]:
  """Merge neighbouring dims, left to right, while their product is <= limit.

  >>> merged_shape((5, 3, 3, 3), 16)
  [15, 9]
  """
  dims = [d for d in shape if d != 1]
  if not dims:
    return [1]
  merged: list[int] = []
  for d in dims:
    if merged and merged[-1] * d <= limit:
      merged[-1] *= d
    else:
      merged.append(d)
  return merged


def block_slices(shape: Sequence[int], limit: int) -> list[tuple[slice, ...]]:
  """Cut every dim into pieces of at most `limit`; return all combinations."""
  ranges = [
    [slice(a, min(a + limit, d)) for a in range(0, d, limit)] for d in shape
  ]
  return list(itertools.product(*ranges))


def contraction(tensor: Tensor, mode: int) -> Tensor:
  """Return G_(k) G_(k)^T, [d_k, d_k]: sums over all modes but k.

  >>> contraction(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0)
  tensor([[ 5., 11.],
          [11., 25.]])
  """
  letters = string.ascii_lowercase[: tensor.dim()]
  other = letters.replace(letters[mode], 'z')
  return torch.einsum(f'{letters},{other}->{letters[mode]}z', tensor, tensor)


def apply_mode(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
  """Multiply a tensor by a matrix on one mode."""
  letters = string.ascii_lowercase[: tensor.dim()]
  result = letters.replace(letters[mode], 'z')
  return torch.einsum(f'z{letters[mode]},{letters}->{result}', matrix, tensor)


def inverse_root(matrix: Tensor, epsilon: float, exponent: float) -> Tensor:
  """Return (A + epsilon I)^(-q), with a negative spectrum shifted up to 0."""
  values, vectors = torch.linalg.eigh(matrix)
  values = values - min(values.min().item(), 0.0) + epsilon
  return vectors @ torch.diag(values**-exponent) @ vectors.T


class ReferenceShampoo:
  """One parameter's Shampoo, functional in its weights.

  Args:
    weight: initial weights, cloned.
    lr: learning rate; it and all further arguments as for
      `DistributedShampoo`.
    diagonal: no factors, only the grafted step.
    phase: phase of the block's roots with `spread_roots`; None without.

  >>> shampoo = ReferenceShampoo(torch.ones(2), lr=0.5)
  >>> shampoo.step(torch.tensor([2.0, -2.0]))  # Adam's first step
  >>> shampoo.weight
  tensor([0.5000, 1.5000])
  """

  def __init__(
    self,
    weight: Tensor,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    max_preconditioner_dim: int = 1024,
    precondition_frequency: int = 100,
    start_preconditioning_step: int = -1,
    inv_root_override: int | list[int] = 0,
    exponent_multiplier: float = 1.0,
    grafting: str | None = 'adam',
    grafting_beta2: float | None = None,
    grafting_epsilon: float = 1e-8,
    use_nadam: bool = False,
    use_nesterov: bool = False,
    use_decoupled_weight_decay: bool = True,
    diagonal: bool = False,
    phase: int | None = None,
  ) -> None:
    self.options: dict[str, Any] = dict(locals())
    self.weight = weight.clone()
    self.t = 0
    limit = max_preconditioner_dim
    self.merged = merged_shape(weight.shape, limit)
    self.slices = block_slices(self.merged, limit)
    self.blocks: list[dict[str, Any]] = []
    for where in self.slices:
      block = weight.reshape(self.merged)[where]
      zero = torch.zeros_like(block)
      self.blocks.append(
        {
          'A': [weight.new_zeros(d, d) for d in block.shape],
          'X': [weight.new_zeros(d, d) for d in block.shape],
          'm': zero.clone(),
          'v': zero.clone(),
          'h': zero.clone(),
        }
      )

  def step(self, gradient: Tensor | None) -> None:
    """Make step t on every block; None for a missing gradient."""
    o = self.options
    self.t += 1
    frequency = o['precondition_frequency']
    start = o['start_preconditioning_step']
    start = frequency if start == -1 else start
    due = self.t == start or (self.t > start and self.t % frequency == 0)
    if o['phase'] is not None:
      start += o['phase']
      due = self.t >= start and (self.t - start) % frequency == 0
    weight = self.weight.reshape(self.merged).clone()
    full = None if gradient is None else gradient.reshape(self.merged)
    for where, state in zip(self.slices, self.blocks, strict=True):
      block = weight[where]
      g = None
      if full is not None:
        g = full[where]
        if not o['use_decoupled_weight_decay']:
          g = g + o['weight_decay'] * block
        self._add_to_factors(state, g)
      if due:
        self._take_roots(state)
      if g is not None:
        weight[where] = self._new_block(state, block, g, self.t >= start)
    self.weight = weight.reshape(self.weight.shape)

  def _add_to_factors(self, state: dict[str, Any], g: Tensor) -> None:
    """A_k <- beta2 A_k + (1 - beta2) G_(k) G_(k)^T."""
    beta2 = self.options['betas'][1]
    share = 1 if beta2 == 1 else 1 - beta2
    for mode in range(g.dim()):
      state['A'][mode] = beta2 * state['A'][mode] + share * contraction(g, mode)

  def _take_roots(self, state: dict[str, Any]) -> None:
    """X_k <- (A_k / (1 - beta2^t) + epsilon I)^(-q)."""
    beta2 = self.options['betas'][1]
    correction = 1 if beta2 == 1 else 1 - beta2**self.t
    for mode, factor in enumerate(state['A']):
      state['X'][mode] = inverse_root(
        factor / correction,
        self.options['epsilon'],
        self._exponent(len(state['A'])),
      )

  def _exponent(self, order: int) -> float:
    """q = exponent_multiplier / (2 order), or / inv_root_override."""
    override = self.options['inv_root_override']
    if isinstance(override, list):
      root = override[order] if order < len(override) else 2 * order
    else:
      root = override or 2 * order
    return self.options['exponent_multiplier'] / root

  def _graft(self, state: dict[str, Any], f: Tensor, g: Tensor) -> Tensor:
    """Update v and return a, the diagonal method's direction."""
    o = self.options
    beta = o['grafting_beta2']
    beta = o['betas'][1] if beta is None else beta
    if o['grafting'] is None:
      return torch.zeros_like(f)
    if o['grafting'] == 'sgd':
      return f
    if o['grafting'] == 'adagrad' or beta == 1:
      state['v'] = state['v'] + g**2
    else:
      state['v'] = beta * state['v'] + (1 - beta) * g**2
    v = state['v']
    if o['grafting'] == 'adam' and beta < 1:
      v = v / (1 - beta**self.t)
    return f / (v.sqrt() + o['grafting_epsilon'])

  def _new_block(
    self, state: dict[str, Any], block: Tensor, g: Tensor, preconditioned: bool
  ) -> Tensor:
    """Return the block after its step: filter, graft, S, P, decay, momentum."""
    o = self.options
    beta1 = o['betas'][0]
    f = g
    if beta1 > 0:
      state['m'] = beta1 * state['m'] + (1 - beta1) * g
      f = state['m']
      if o['use_nadam']:
        f = beta1 * state['m'] + (1 - beta1) * g
      f = f / (1 - beta1**self.t)
    p = a = self._graft(state, f, g)
    if preconditioned and not o['diagonal']:
      p = f
      for mode, root in enumerate(state['X']):
        p = apply_mode(p, root, mode)
      if o['grafting'] is not None:
        p = p * a.norm() / (p.norm() + 1e-16)
    if o['use_decoupled_weight_decay']:
      p = p + o['weight_decay'] * block
    mu = o['momentum']
    if mu > 0:
      state['h'] = mu * state['h'] + (1 - mu) * p
      p = (1 - mu) * p + mu * state['h'] if o['use_nesterov'] else state['h']
    return block - o['lr'] * p
