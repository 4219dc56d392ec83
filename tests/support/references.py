"""Slow references, written straight from the formulas, in float64."""

import math

import torch


class ReferenceNadamW:
  """design: m, v, look-ahead n, decoupled decay; one tensor at a time."""

  def __init__(self, params, lr, betas, eps, weight_decay):
    self.p = [p.detach().double().clone() for p in params]
    self.m = [torch.zeros_like(p) for p in self.p]
    self.v = [torch.zeros_like(p) for p in self.p]
    self.t = [0] * len(self.p)
    self.lr, self.betas = lr, betas
    self.eps, self.weight_decay = eps, weight_decay

  def step(self, grads):
    b1, b2 = self.betas
    for i, grad in enumerate(grads):
      if grad is None:
        continue
      g = grad.double()
      self.t[i] += 1
      self.m[i] = b1 * self.m[i] + (1 - b1) * g
      self.v[i] = b2 * self.v[i] + (1 - b2) * g * g
      n = b1 * self.m[i] + (1 - b1) * g
      self.p[i] = self.p[i] * (1 - self.lr * self.weight_decay)
      denominator = self.v[i].sqrt() / math.sqrt(1 - b2 ** self.t[i]) + self.eps
      step_size = self.lr / (1 - b1 ** self.t[i])
      self.p[i] = self.p[i] - step_size * n / denominator


def explicit_average(samples, weights):
  """sum_j w_j x_j over stored samples (lists of tensors), in float64."""
  return [
    sum(w * x.double() for w, x in zip(weights, column, strict=True))
    for column in zip(*samples, strict=True)
  ]


class ReferencePrimal:
  """Primal averaging with x, y and z each stored, around any optimizer.

  z is what the parameters hold in the optimizer's step, y what they hold when
  gradients are taken. All in the parameters' dtype.
  """

  def __init__(self, params, optimizer, interpolation, coefficient):
    self.params, self.optimizer = list(params), optimizer
    self.mu, self.coefficient = interpolation, coefficient
    self.z = [p.detach().clone() for p in self.params]
    self.x = [p.detach().clone() for p in self.params]
    self.samples = 0

  @torch.no_grad()
  def step(self, is_sampled=True):
    """Gradients at y are there; afterwards the parameters hold the next y."""
    for p, z in zip(self.params, self.z, strict=True):
      p.copy_(z)
    self.optimizer.step()
    self.samples += is_sampled
    c = self.coefficient(self.samples) if is_sampled else 0.0
    for i, p in enumerate(self.params):
      self.z[i] = p.clone()
      self.x[i] = self.x[i] + c * (self.z[i] - self.x[i])
      if not self.samples:
        self.x[i] = self.z[i]
      p.copy_(self.mu * self.x[i] + (1 - self.mu) * self.z[i])
