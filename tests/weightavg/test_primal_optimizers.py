"""Training at an average: several optimizers, wrapped ones, averagers."""

import pytest
import torch
from primal_runs import backward, build, contents, nadamw, train
from tensors import assert_same_by_name
from torch import nn

from weightavg import Ema
from weightavg.pytorch import Averager, NadamW


class Wrapper(NadamW):
  """Looks like the optimizer inside, as Fabric's does, which makes the step."""

  def __init__(self, optimizer):
    self.__dict__ = dict(optimizer.__dict__)
    self.inner = optimizer

  def step(self, closure=None):
    return self.inner.step(closure)


@pytest.mark.parametrize('handed', ['wrapper', 'inner'])
def test_a_wrapper_makes_the_steps_of_the_optimizer_inside(handed):
  (model, inner, averager), plain = build(), build()
  optimizer = Wrapper(inner)
  for step in range(4):
    backward(model, step)
    averager.before_step(optimizer if handed == 'wrapper' else inner)
    optimizer.step()
    averager.update()
  train(*plain, range(4))
  # Two passes over y in another order of the same roundings.
  torch.testing.assert_close(
    contents(model), contents(plain[0]), rtol=1e-12, atol=1e-14
  )
  with averager.evaluating(), plain[2].evaluating():
    torch.testing.assert_close(
      contents(model), contents(plain[0]), rtol=1e-12, atol=1e-14
    )


class Scaling(torch.optim.Optimizer):
  """Shrinks the weights before the step of the optimizer inside."""

  def __init__(self, optimizer, delegates):
    self.inner, self.delegates = optimizer, delegates
    self.param_groups = optimizer.param_groups

  def __getattr__(self, name):
    if name == 'delegates' or not self.delegates:
      raise AttributeError(name)
    return getattr(self.inner, name)

  def step(self):
    with torch.no_grad():
      for group in self.param_groups:
        for p in group['params']:
          p.mul_(0.5)
    self.inner.step()


def test_a_wrapper_that_hands_over_attributes_moves_no_average():
  runs = []
  for delegates in (True, False):
    model, inner, averager = build()
    train(model, Scaling(inner, delegates), averager, range(4))
    averager.swap_in()
    runs.append(contents(model))
  assert_same_by_name(*runs)


def pair():
  torch.manual_seed(0)
  return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()


def step(model, averagers, handed, stepped, index):
  x = torch.full((4, 3), 0.1 * index, dtype=torch.float64)
  model.zero_grad()
  (model(x) - 1.0).square().mean().backward()
  for averager in averagers:
    averager.before_step(*handed)
  for optimizer in stepped:
    optimizer.step()
  for averager in averagers:
    averager.update()


@pytest.mark.parametrize('first', [0, 1])
def test_of_two_optimizers_one_may_be_wrapped(first):
  """Its parameters are moved in passes of their own, whichever is first."""
  runs = []
  for is_wrapped in (True, False):
    model = pair()
    inner = [nadamw(layer.parameters()) for layer in model]
    handed = [inner[0], Wrapper(inner[1]) if is_wrapped else inner[1]]
    stepped = handed if first == 0 else handed[::-1]
    averager = Averager(model, Ema(0.75), interpolation=0.9)
    for index in range(5):
      step(model, [averager], handed, stepped, index)
    averager.swap_in()
    runs.append(contents(model))
  # Two passes over y in another order of the same roundings.
  torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('is_wrapped', [False, True])
def test_averagers_of_two_parts_share_an_optimizer(is_wrapped):
  runs = []
  for are_parts in (True, False):
    model = pair()
    optimizer = nadamw(model.parameters())
    if is_wrapped:
      optimizer = Wrapper(optimizer)
    averagers = [
      Averager(part, Ema(0.75), interpolation=0.9)
      for part in (model if are_parts else [model])
    ]
    for index in range(5):
      step(model, averagers, [optimizer], [optimizer], index)
    for averager in averagers:
      averager.swap_in()
    runs.append(contents(model))
  torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('period', [2, 4])
def test_one_of_two_optimizers_may_make_no_step(period):
  """As with GradScaler, which leaves out the one whose gradients overflow."""
  runs = []
  for are_both_handed in (True, False):
    model = pair()
    both = [nadamw(layer.parameters()) for layer in model]
    averager = Averager(model, Ema(0.75), interpolation=0.9)
    for index in range(9):
      stepped = both if index % period == 0 else both[:1]
      handed = both if are_both_handed else stepped
      step(model, [averager], handed, stepped, index)
    averager.swap_in()
    runs.append(contents(model))
  # Two passes over y in another order of the same roundings.
  torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-14)


def test_an_optimizer_that_made_no_step_is_free_afterwards():
  model = pair()
  optimizer = nadamw(model.parameters())
  averager = Averager(model, Ema(0.75), interpolation=0.9)
  step(model, [averager], [optimizer], [optimizer], 0)
  # An infinite gradient: NadamW is told to leave its next step out.
  step(model, [averager], [optimizer], [], float('inf'))
  del averager
  before = model[0].weight.clone()
  step(model, [], [], [optimizer], 2)
  assert not torch.equal(model[0].weight, before)


def test_a_second_step_before_the_update_is_refused():
  model = pair()
  optimizer = nadamw(model.parameters())
  averager = Averager(model, Ema(0.75), interpolation=0.9)
  averager.before_step(optimizer)
  model(torch.ones(4, 3, dtype=torch.float64)).sum().backward()
  averager.update()
  averager.before_step(optimizer)
  optimizer.step()
  before = contents(model)
  with pytest.raises(RuntimeError, match='NadamW has stepped since before_st'):
    optimizer.step()
  assert_same_by_name(contents(model), before)
  averager.update()


@pytest.mark.parametrize('make', [torch.optim.AdamW, torch.optim.SGD])
def test_a_model_may_become_channels_last_before_the_first_step(make):
  """Fused optimizers walk through weight and gradient side by side."""
  runs = []
  for is_late in (True, False):
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3).double()
    if not is_late:
      model.to(memory_format=torch.channels_last)
    averager = Averager(model, Ema(0.75), interpolation=0.5)
    model.to(memory_format=torch.channels_last)
    options = {'betas': (0.0, 0.9)} if make is torch.optim.AdamW else {}
    optimizer = make(model.parameters(), lr=0.1, fused=True, **options)
    for _ in range(3):
      optimizer.zero_grad()
      model(torch.randn(2, 3, 6, 6).double()).square().mean().backward()
      averager.before_step(optimizer)
      optimizer.step()
      averager.update()
    averager.swap_in()
    runs.append(contents(model))
  torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-14)
