"""Shampoo as slow as the formulas: one parameter, one block at a time.

Nothing here is shared with the package: plain lists of blocks, full matrices,
einsum contractions, scalars in Python.
"""

import itertools
import string

import torch


def merged_shape(shape, limit):
  shape = [d for d in shape if d != 1]
  if not shape:
    return [1]
  result = []
  for d in shape:
    if result and result[-1] * d <= limit:
      result[-1] *= d
    else:
      result.append(d)
  return result


def block_slices(shape, limit):
  ranges = [
    [slice(a, min(a + limit, d)) for a in range(0, d, limit)] for d in shape
  ]
  return list(itertools.product(*ranges))


def contraction(tensor, mode):
  """sum over all other modes of tensor x tensor."""
  letters = string.ascii_lowercase[: tensor.dim()]
  other = letters.replace(letters[mode], 'z')
  return torch.einsum(f'{letters},{other}->{letters[mode]}z', tensor, tensor)


def apply_mode(tensor, matrix, mode):
  letters = string.ascii_lowercase[: tensor.dim()]
  result = letters.replace(letters[mode], 'z')
  return torch.einsum(f'z{letters[mode]},{letters}->{result}', matrix, tensor)


def inverse_root(matrix, epsilon, exponent):
  values, vectors = torch.linalg.eigh(matrix)
  values = values - min(values.min().item(), 0.0) + epsilon
  return vectors @ torch.diag(values**-exponent) @ vectors.T


class ReferenceShampoo:
  """One parameter; `step(gradient)` with None for a missing gradient."""

  def __init__(
    self,
    weight,
    lr,
    betas=(0.9, 0.999),
    epsilon=1e-8,
    momentum=0.0,
    weight_decay=0.0,
    max_preconditioner_dim=1024,
    precondition_frequency=100,
    start_preconditioning_step=-1,
    inv_root_override=0,
    exponent_multiplier=1.0,
    grafting='adam',
    grafting_beta2=None,
    grafting_epsilon=1e-8,
    use_nadam=False,
    use_nesterov=False,
    use_decoupled_weight_decay=True,
    diagonal=False,
    phase=None,
  ):
    self.options = dict(locals())
    self.weight = weight.clone()
    self.t = 0
    limit = max_preconditioner_dim
    self.merged = merged_shape(weight.shape, limit)
    self.slices = block_slices(self.merged, limit)
    self.blocks = []
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

  def exponent(self, order):
    override = self.options['inv_root_override']
    if isinstance(override, list):
      root = override[order] if order < len(override) else 2 * order
    else:
      root = override or 2 * order
    return self.options['exponent_multiplier'] / root

  def step(self, gradient):
    o = self.options
    self.t += 1
    frequency = o['precondition_frequency']
    start = o['start_preconditioning_step']
    start = frequency if start == -1 else start
    due = self.t == start or (self.t > start and self.t % frequency == 0)
    if o['phase'] is not None:
      # Spread: a cadence of its own, from T0 + phase on.
      start += o['phase']
      due = self.t >= start and (self.t - start) % frequency == 0
    weight = self.weight.reshape(self.merged).clone()
    full = None if gradient is None else gradient.reshape(self.merged)
    for where, state in zip(self.slices, self.blocks, strict=True):
      block = weight[where]
      if full is not None:
        g = full[where]
        if not o['use_decoupled_weight_decay']:
          g = g + o['weight_decay'] * block
        self.add_factors(state, g)
      if due:
        self.take_roots(state)
      if full is not None:
        weight[where] = self.new_block(state, block, g, self.t >= start)
    self.weight = weight.reshape(self.weight.shape)

  def add_factors(self, state, g):
    beta2 = self.options['betas'][1]
    weight = 1 if beta2 == 1 else 1 - beta2
    for mode in range(g.dim()):
      state['A'][mode] = beta2 * state['A'][mode] + weight * contraction(
        g, mode
      )

  def take_roots(self, state):
    beta2 = self.options['betas'][1]
    correction = 1 if beta2 == 1 else 1 - beta2**self.t
    for mode, factor in enumerate(state['A']):
      state['X'][mode] = inverse_root(
        factor / correction,
        self.options['epsilon'],
        self.exponent(len(state['A'])),
      )

  def graft(self, state, f, g):
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

  def new_block(self, state, block, g, preconditioned):
    o = self.options
    beta1 = o['betas'][0]
    f = g
    if beta1 > 0:
      state['m'] = beta1 * state['m'] + (1 - beta1) * g
      f = state['m']
      if o['use_nadam']:
        f = beta1 * state['m'] + (1 - beta1) * g
      f = f / (1 - beta1**self.t)
    p = a = self.graft(state, f, g)
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
