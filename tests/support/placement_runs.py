"""Trajectories of weights of several dtypes, averaged at a placement."""

import torch
from torch import nn

from weightavg import AveragingConfig
from weightavg.pytorch import Averager

averager_of = Averager.from_config
PLACEMENTS = ('device', 'cpu', 'sharded')
SCHEMES = {
  'lawa': {'averaging_scheme': 'lawa', 'lawa_window': 3},
  'ema': {'averaging_scheme': 'ema', 'ema_decay': 0.7},
  'polynomial': {'averaging_scheme': 'polynomial'},
}


def weights(dtype=torch.float32):
  """Odd sizes, a channels-last tensor, a strided one, an empty one."""
  torch.manual_seed(0)
  strided = nn.Parameter(torch.randn(6, 5).to(dtype)[:, ::2])
  last = torch.randn(3, 4, 5, 2).to(memory_format=torch.channels_last)
  return [
    ('matrix', nn.Parameter(torch.randn(37, 3).to(dtype))),
    ('last', nn.Parameter(last.to(dtype))),
    ('empty', nn.Parameter(torch.empty(0, 3, dtype=dtype))),
    ('scalar', nn.Parameter(torch.randn(()).to(dtype))),
    ('strided', strided),
    ('gaps', nn.Parameter(torch.randn(6, 5).to(dtype).t()[::2])),
    ('double', nn.Parameter(torch.randn(7, dtype=torch.float64))),
  ]


def build(named, scheme, placement, every=1, **knobs):
  config = AveragingConfig.from_point(
    averaging_placement=placement,
    averaging_every_steps=every,
    **SCHEMES[scheme],
    **knobs,
  )
  return averager_of(named, config, budget=100)


def change(named, step):
  generator = torch.Generator().manual_seed(step)
  with torch.no_grad():
    for _, p in named:
      p.add_(torch.randn(p.shape, generator=generator))


def values(named):
  return [p.detach().clone() for _, p in named]


def trajectory(scheme, placement, dtype, **knobs):
  """Weights during evaluation and the raw weights after it, step by step."""
  named = weights(dtype)
  averager = build(named, scheme, placement, **knobs)
  seen = []
  for step in range(6):
    change(named, step)
    averager.update()
    with averager.evaluating():
      seen += values(named)
    seen += values(named)
  return seen
