"""A model with tied weights and a BatchNorm, trained beside its averager."""

import torch
from torch import nn

from weightavg.pytorch import Averager


class Tied(nn.Module):
  """A head that shares the embedding, and a BatchNorm."""

  def __init__(self):
    super().__init__()
    self.embedding = nn.Embedding(5, 4)
    self.norm = nn.BatchNorm1d(4)
    self.frozen = nn.Linear(4, 4).requires_grad_(False)
    self.head = nn.Linear(4, 5, bias=False)
    self.head.weight = self.embedding.weight

  def forward(self, x):
    return self.head(self.frozen(self.norm(self.embedding(x))))


def trained(scheme, steps=4, wrap=None, **options):
  torch.manual_seed(0)
  model = Tied()
  wrapped = model if wrap is None else wrap(model)
  averager = Averager(wrapped, scheme, **options)
  for _ in range(steps):
    loss = wrapped(torch.randint(5, (8,))).square().mean()
    loss.backward()
    with torch.no_grad():
      for p in model.parameters():
        if p.grad is not None:
          p -= 0.1 * p.grad
          p.grad = None
    averager.update()
  return model, averager
