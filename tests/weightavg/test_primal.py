"""Training at an average: arithmetic, and other implementations of it."""

import copy
import warnings

import pytest
import schedulefree
import torch
from primal_runs import (
  SCHEMES,
  backward,
  batch,
  build,
  contents,
  nadamw,
  network,
  sgd,
  shampoo,
  train,
)
from references import ReferencePrimal
from tensors import assert_same_by_name
from torch import nn

from weightavg import (
  Ema,
  Polynomial,
  ScheduleFree,
)
from weightavg.pytorch import Averager, NadamW

# torch's compiler warns of torch's own deprecated functions when imported.
imports_compiler = pytest.mark.filterwarnings('ignore::DeprecationWarning')


# Arithmetic.


def test_literal_three_steps():
  # Polyak's mean of z, mu = 1/2, steps of -1, -2, -4 from 8:
  # z = 7, 5, 1; x = 7, 6, 13/3; y = 7, 5.5, 8/3.
  p = nn.Parameter(torch.tensor([8.0], dtype=torch.float64))
  averager = Averager([('p', p)], Polynomial(0.0), interpolation=0.5)
  optimizer = torch.optim.SGD([p], lr=1.0)
  seen = []
  for gradient in (1.0, 2.0, 4.0):
    p.grad = torch.full((1,), gradient, dtype=torch.float64)
    averager.before_step(optimizer)
    optimizer.step()
    averager.update()
    y = p.item()
    with averager.evaluating():
      seen += [y, p.item()]
  assert seen == pytest.approx([7, 7, 5.5, 6, 8 / 3, 13 / 3], rel=1e-15)


def test_schedule_free_weighs_by_the_largest_learning_rate():
  # Weights 1, 4, 4, 16 by the rates 1, 2, 1, 4; z = -1, -3, -4, -8.
  p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
  averager = Averager([('p', p)], ScheduleFree(), interpolation=0.5)
  optimizer = torch.optim.SGD([p], lr=1.0)
  for rate in (1.0, 2.0, 1.0, 4.0):
    optimizer.param_groups[0]['lr'] = rate
    p.grad = torch.ones(1, dtype=torch.float64)
    averager.before_step(optimizer)
    optimizer.step()
    averager.update()
  expected = -(1 + 4 * 3 + 4 * 4 + 16 * 8) / 25
  with averager.evaluating():
    assert p.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(('every', 'start'), [(1, 0), (3, 0), (1, 4), (2, 5)])
@pytest.mark.parametrize('make', [nadamw, shampoo, sgd])
@pytest.mark.parametrize('scheme', SCHEMES)
def test_each_step_is_that_of_the_slow_reference(scheme, make, every, start):
  model, optimizer, averager = build(scheme, make, every=every, start=start)
  twin = network()
  reference = ReferencePrimal(
    twin.parameters(),
    make(twin.parameters()),
    0.9,
    SCHEMES[scheme].coefficient,
  )
  for step in range(9):
    for net in (model, twin):
      backward(net, step)
      if step in (3, 6):  # z stays, x and y move
        net.out.bias.grad = None
    reference.step(averager.sampling.is_sampled(step + 1))
    averager.before_step(optimizer)
    optimizer.step()
    averager.update()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
      # float64; the optimizers divide by roots of small gradients.
      torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
    with averager.evaluating():
      x = reference.x if averager.samples else list(twin.parameters())
      for p, q in zip(model.parameters(), x, strict=True):
        torch.testing.assert_close(p.data, q.detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('mu', [0.1, 0.5, 0.98])
def test_in_float32_the_average_is_that_of_the_samples(mu):
  model, optimizer, averager = build(mu=mu, dtype=torch.float32)
  samples = []
  for step in range(40):
    backward(model, step)
    averager.before_step(optimizer)
    optimizer.step()
    samples.append([p.detach().double().clone() for p in model.parameters()])
    averager.update()
  weights = averager.scheme.weights(40)
  with averager.evaluating():
    for p, *column in zip(model.parameters(), *samples, strict=True):
      exact = sum(w * z for w, z in zip(weights, column, strict=True))
      # x is computed from y, which is rounded to 2^-24 and enlarged by 1/mu;
      # an EMA of four samples remembers a few such errors.
      torch.testing.assert_close(
        p.data.double(), exact, rtol=0, atol=4 * 2**-23 / mu
      )


@pytest.mark.parametrize(('r', 'warmup'), [(0.0, 0), (0.0, 5), (2.0, 5)])
def test_nadamw_is_pypis_adamw_schedule_free(r, warmup):
  mu, lr = 0.9, 0.02
  model, twin = network(), network()
  theirs = schedulefree.AdamWScheduleFree(
    [p for p in twin.parameters()],
    lr=lr,
    betas=(mu, 0.95),
    warmup_steps=warmup,
    r=r,
  )
  optimizer = NadamW(model.parameters(), lr=lr, betas=(0.0, 0.95))
  averager = Averager(model, ScheduleFree(r), interpolation=mu)
  theirs.train()
  for step in range(12):
    share = min(1.0, (step + 1) / warmup) if warmup else 1.0
    optimizer.param_groups[0]['lr'] = lr * share
    for net in (model, twin):
      backward(net, step)
    theirs.step()
    averager.before_step(optimizer)
    optimizer.step()
    averager.update()
    # float64; the kernels divide in another order.
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
      torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
  theirs.eval()
  with averager.evaluating():
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
      torch.testing.assert_close(p.data, q.data, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('mu', [0.0, 0.9])
def test_the_default_statistics_are_those_that_fit_the_average(mu):
  """Averaged statistics are too old for an average that trains."""
  runs = [
    build(mu=mu, batch_norm=kind) for kind in (None, 'averaged', 'current')
  ]
  shown = []
  for run in runs:
    train(*run, range(3))
    with run[2].evaluating():
      shown.append(run[0].norm.running_mean.clone())
  assert torch.equal(shown[0], shown[2 if mu else 1])
  assert not torch.equal(shown[1], shown[2])


def test_running_statistics_are_averaged_as_y_saw_them():
  model, optimizer, averager = build('polyak')
  seen = []
  for step in range(4):
    train(model, optimizer, averager, [step])
    seen.append(model.norm.running_mean.clone())
  with averager.evaluating():
    torch.testing.assert_close(
      model.norm.running_mean, torch.stack(seen).mean(0), rtol=1e-6, atol=0
    )
  assert torch.equal(model.norm.running_mean, seen[-1])


def test_refreshed_statistics_are_those_of_forward_passes_at_the_average():
  run = build(batch_norm='refreshed', refresh_every=2)
  model, _, averager = run
  twin = network()
  for step in range(6):
    train(*run, [step])
    if step == 0:  # the average begins with the statistics of y
      twin.norm.load_state_dict(model.norm.state_dict())
    if step % 2:
      for (name, p), q in zip(
        averager.averaged_state_dict().items(),
        twin.state_dict().values(),
        strict=True,
      ):
        if not name.startswith('norm.running'):
          q.copy_(p)
      twin(batch(twin, step)[0])
    with averager.evaluating():
      for name in ('running_mean', 'running_var'):
        assert torch.equal(getattr(model.norm, name), getattr(twin.norm, name))


def test_a_refresh_leaves_training_alone():
  refreshed = build(batch_norm='refreshed', refresh_every=1)
  alone = build(batch_norm='current')
  for run in (refreshed, alone):
    torch.manual_seed(5)
    train(*run, range(4))
    run[2].placement.numbers = torch.rand(2)
  assert_same_by_name(contents(refreshed[0]), contents(alone[0]))
  assert torch.equal(*(r[2].placement.numbers for r in (refreshed, alone)))


def test_a_refresh_that_fails_changes_nothing():
  run = build(batch_norm='refreshed', refresh_every=1)
  train(*run, range(3))
  before, state = contents(run[0]), copy.deepcopy(run[2].state_dict())
  with pytest.raises(ValueError, match='expected 4D'), run[2].refreshing():
    run[0].norm(torch.ones(2, 3))
  assert_same_by_name(contents(run[0]), before)
  assert_same_by_name(run[2].state_dict()['buffers'][0], state['buffers'][0])


def test_a_model_without_running_statistics_is_not_refreshed():
  model = nn.Linear(2, 2)
  averager = Averager(
    model, Ema(0.5), interpolation=0.9, batch_norm='refreshed'
  )
  assert not averager.refresh_due
  with (
    pytest.raises(RuntimeError, match='Nothing is refreshed'),
    averager.refreshing(),
  ):
    pass


@pytest.mark.parametrize('scheme', ['ema', 'polynomial'])
def test_without_interpolation_nothing_is_different(scheme):
  states = []
  for options in ({}, {'interpolation': 0.0}):
    model = network()
    optimizer = nadamw(model.parameters())
    averager = Averager(model, SCHEMES[scheme], **options)
    for step in range(5):
      backward(model, step)
      if options:
        averager.before_step(optimizer)
      optimizer.step()
      averager.update()
    with averager.evaluating():
      states.append((contents(model), averager.state_dict()))
  assert_same_by_name(states[0][0], states[1][0])
  assert states[0][1].keys() == states[1][1].keys()
  assert states[0][1]['recipe'] == states[1][1]['recipe']


# One pass with the optimizer.


def test_nadamw_moves_the_average_in_its_own_pass():
  model, optimizer, averager = build()
  train(model, optimizer, averager, range(2))
  backward(model, 2)
  averager.before_step(optimizer)
  optimizer.step()
  followers = averager.placement._step.followers
  assert followers.moved == set(model.parameters()) - {model.idle}
  averager.update()


@imports_compiler
@pytest.mark.slow
def test_the_compiled_pass_makes_the_same_steps():
  compiled = build(
    make=lambda p: nadamw(p, fused='compile'), dtype=torch.float32
  )
  plain = build(dtype=torch.float32)
  for step in range(3):
    for model, optimizer, averager in (compiled, plain):
      with warnings.catch_warnings():
        # Without a compiler it warns and runs as the other one does.
        warnings.simplefilter('ignore')
        train(model, optimizer, averager, [step])
    for p, q in zip(
      compiled[0].parameters(), plain[0].parameters(), strict=True
    ):
      # float32 kernels of different instructions; roots of small gradients.
      torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_without_momentum_nothing_more_is_stored_than_with_it():
  model, optimizer, averager = build(batch_norm='current')
  train(model, optimizer, averager, range(2))
  size = sum(p.numel() * p.element_size() for p in model.parameters())
  assert averager.placement.nbytes() == size
  assert all('exp_avg' not in s for s in optimizer.state.values())


def test_nadamw_without_momentum_is_the_limit_of_little_momentum():
  params = [nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))]
  others = copy.deepcopy(params)
  one = nadamw(params)
  other = nadamw(others, betas=(1e-300, 0.9))
  for gradient in (1.0, -3.0, 0.5):
    for (p,), optimizer in ((params, one), (others, other)):
      p.grad = torch.full((2,), gradient, dtype=torch.float64)
      optimizer.step()
  assert torch.equal(params[0], others[0])


def test_a_momentum_that_is_switched_on_later_starts_at_zero():
  p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
  optimizer = NadamW([p], lr=0.1, betas=(0.0, 0.9))
  p.grad = torch.ones(1, dtype=torch.float64)
  optimizer.step()
  optimizer.param_groups[0]['betas'] = (0.5, 0.9)
  optimizer.step()
  assert optimizer.state[p]['exp_avg'].item() == 0.5
