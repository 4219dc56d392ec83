"""A layer and its averager, with samples of given values."""

from torch import nn

from weightavg import Polynomial
from weightavg.pytorch import Averager

SWAPS = ('copy', 'exchange')


def model(values=(1.0, 5.0), swap='copy', **options):
  """A weight that was 1 and is 5; its average is 3."""
  net = nn.Linear(1, 1, bias=False)
  averager = Averager(net, Polynomial(0.0), swap=swap, **options)
  for value in values:
    net.weight.data.fill_(value)
    averager.update()
  return net, averager
