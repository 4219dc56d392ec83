"""Parameters and gradients for steps of NadamW, from fixed seeds."""

import torch

SETTINGS = {'lr': 0.01, 'betas': (0.9, 0.99), 'eps': 1e-8, 'weight_decay': 0.1}


def parameters(dtype, shapes=((3, 4), (5,), (), (2, 3, 4, 4))):
  generator = torch.Generator().manual_seed(1)
  return [
    torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype))
    for s in shapes
  ]


def gradients(params, step):
  generator = torch.Generator().manual_seed(100 + step)
  return [torch.randn(p.shape, generator=generator).to(p.dtype) for p in params]
