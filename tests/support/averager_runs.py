"""Short runs of a small model with all kinds of weights, averaged."""

import torch
from torch import nn

from weightavg import AveragingConfig
from weightavg.pytorch import Averager, NadamW

averager_of = Averager.from_config

SCHEMES = {
  'lawa': {'averaging_scheme': 'lawa', 'lawa_window': 3},
  'ema': {'averaging_scheme': 'ema', 'ema_decay': 0.7},
  'polynomial': {'averaging_scheme': 'polynomial', 'averaging_power': 2.0},
  'polyak': {'averaging_scheme': 'polynomial', 'averaging_power': 0.0},
}
SWAPS = ('exchange', 'copy')


def config(scheme, every=1, **kwargs):
  return AveragingConfig.from_point(
    averaging_every_steps=every, **SCHEMES[scheme], **kwargs
  )


class Net(nn.Module):
  """Convolution, BatchNorm, a tied embedding: all kinds of weights."""

  def __init__(self):
    super().__init__()
    self.conv = nn.Conv2d(3, 4, 3, padding=1)
    self.norm = nn.BatchNorm2d(4)
    self.embedding = nn.Embedding(6, 4)
    self.out = nn.Linear(4, 6)
    self.out.weight = self.embedding.weight
    self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

  def forward(self, x):
    h = torch.relu(self.norm(self.conv(x))).mean((2, 3))
    return self.out(h + self.embedding(torch.arange(1)))


def train_step(model, optimizer, step):
  generator = torch.Generator().manual_seed(step)
  x = torch.randn(8, 3, 5, 5, generator=generator)
  y = torch.randint(0, 6, (8,), generator=generator)
  optimizer.zero_grad()
  nn.functional.cross_entropy(model(x), y).backward()
  optimizer.step()


def build(scheme, every=1, dtype=torch.float32, **kwargs):
  torch.manual_seed(0)
  model = Net().to(dtype)
  optimizer = NadamW(model.parameters(), lr=0.05)
  averager = averager_of(model, config(scheme, every, **kwargs), budget=100)
  return model, optimizer, averager


def averaged(scheme, **kwargs):
  """A model and its averager after three steps."""
  model, optimizer, averager = build(scheme, **kwargs)
  for step in range(3):
    train_step(model, optimizer, step)
    averager.update()
  return model, averager


def weights(model):
  return {k: v.detach().clone() for k, v in model.state_dict().items()}
