"""Short runs that train at an average."""

import io

import torch
from torch import nn

from weightavg import (
  Ema,
  Polynomial,
  ScheduleFree,
)
from weightavg.pytorch import Averager, NadamW
from weightavg.pytorch.shampoo import DistributedShampoo
from weightavg.schemes import Recursive


class Constant(Recursive):
  """An EMA that begins with the weights at the start of training."""

  name = 'constant'

  def coefficient(self, count):
    return 0.25


SCHEMES = {
  'ema': Ema(0.75),
  'polynomial': Polynomial(3.0),
  'polyak': Polynomial(0.0),
  'schedule_free': ScheduleFree(2.0),
  'constant': Constant(),
}
NADAMW = {'lr': 0.05, 'betas': (0.0, 0.9), 'weight_decay': 0.1}


def nadamw(params, **changes):
  return NadamW(params, **{**NADAMW, **changes})


def shampoo(params):
  return DistributedShampoo(
    params,
    lr=0.05,
    betas=(0.0, 0.9),
    weight_decay=0.1,
    precondition_frequency=2,
    epsilon=1e-4,
  )


def sgd(params):
  return torch.optim.SGD(params, lr=0.5)


class Net(nn.Module):
  """A parameter of strides of its own, BatchNorm, one without a gradient."""

  def __init__(self):
    super().__init__()
    # A bias before BatchNorm has a gradient of rounding errors only.
    self.conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    self.norm = nn.BatchNorm2d(3)
    self.out = nn.Linear(3, 2)
    self.idle = nn.Parameter(torch.ones(2))

  def forward(self, x):
    return self.out(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def network(dtype=torch.float64):
  torch.manual_seed(0)
  return Net().to(dtype).to(memory_format=torch.channels_last)


def batch(model, step):
  generator = torch.Generator().manual_seed(step)
  dtype = next(model.parameters()).dtype
  x = torch.randn(8, 2, 4, 4, generator=generator, dtype=dtype)
  return x, torch.randint(0, 2, (8,), generator=generator)


def backward(model, step):
  x, y = batch(model, step)
  model.zero_grad()
  nn.functional.cross_entropy(model(x), y).backward()


def train(model, optimizer, averager, steps):
  for step in steps:
    averager.swap_out()
    backward(model, step)
    averager.before_step(optimizer)
    optimizer.step()
    averager.update()
    if averager.refresh_due:
      with averager.refreshing():
        model(batch(model, step)[0])


def build(scheme='ema', make=nadamw, mu=0.9, dtype=torch.float64, **options):
  model = network(dtype)
  options = {'batch_norm': 'averaged'} | options
  averager = Averager(model, SCHEMES[scheme], interpolation=mu, **options)
  return model, make(model.parameters()), averager


def contents(model):
  return {k: v.detach().clone() for k, v in model.state_dict().items()}


def saved(model, optimizer, averager):
  """All of a run as a file holds it."""
  file = io.BytesIO()
  torch.save(
    [model.state_dict(), optimizer.state_dict(), averager.state_dict()], file
  )
  file.seek(0)
  return torch.load(file, weights_only=True)


def restored(state, averager_first=False, **options):
  run = build(**options)
  order = (2, 0, 1) if averager_first else (0, 1, 2)
  for index in order:
    run[index].load_state_dict(state[index])
  return run


def spoil(model):
  """Turn one element of a gradient, and what BatchNorm has seen, into NaN."""
  model.out.weight.grad[0, 0] = float('nan')
  model.norm.running_mean[1] = float('nan')


def bad_step(model, optimizer, averager, step):
  backward(model, step)
  spoil(model)
  averager.before_step(optimizer)
  optimizer.step()
  averager.update()


def everything(model, optimizer, averager):
  """Collect a checkpoint, without the numbers of calls and of skips."""
  state = averager.state_dict()
  del state['step'], state['skipped']
  return contents(model), optimizer.state_dict(), state


def train_with_a_bad_step(model, optimizer, module=None):
  """Make six steps, the fourth by a loss that is NaN; return the averager.

  Args:
    model: takes [batch, 3]; perhaps wrapped.
    optimizer: perhaps wrapped.
    module: inside the wrapper.
  """
  averager = Averager(module or model, Ema(0.5), interpolation=0.5)
  for index in range(6):
    loss = model(torch.full((1, 3), float(index))).square().mean()
    (loss * float('nan') if index == 3 else loss).backward()
    averager.before_step(optimizer)
    optimizer.step()
    optimizer.zero_grad()
    averager.update()
  return averager
