"""Training at an average: arithmetic, other implementations, resume, faults."""

import copy
import gc
import io
import pickle
import re
import warnings

import fakes
import pytest
import schedulefree
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import ReferencePrimal
from torch import nn

from weightavg import (
  Auto,
  AveragingConfig,
  Ema,
  Lawa,
  Polynomial,
  ScheduleFree,
)
from weightavg.pytorch import Averager, NadamW, finite, multi_tensor
from weightavg.pytorch.followers import Followers
from weightavg.pytorch.primal import PrimalPlacement
from weightavg.pytorch.shampoo import DistributedShampoo
from weightavg.pytorch.weights import Weights
from weightavg.schemes import Raw, Recursive

# torch's compiler warns of torch's own deprecated functions when imported.
imports_compiler = pytest.mark.filterwarnings('ignore::DeprecationWarning')


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


def assert_same(one, other):
  assert one.keys() == other.keys()
  for name in one:
    assert torch.equal(one[name], other[name]), name


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
  assert_same(contents(refreshed[0]), contents(alone[0]))
  assert torch.equal(*(r[2].placement.numbers for r in (refreshed, alone)))


def test_a_refresh_that_fails_changes_nothing():
  run = build(batch_norm='refreshed', refresh_every=1)
  train(*run, range(3))
  before, state = contents(run[0]), copy.deepcopy(run[2].state_dict())
  with pytest.raises(ValueError, match='expected 4D'), run[2].refreshing():
    run[0].norm(torch.ones(2, 3))
  assert_same(contents(run[0]), before)
  assert_same(run[2].state_dict()['buffers'][0], state['buffers'][0])


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
  assert_same(states[0][0], states[1][0])
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


# Swaps and resumption.


@pytest.mark.parametrize('swap', ['copy', 'exchange'])
@pytest.mark.parametrize('make', [nadamw, shampoo])
def test_training_with_evaluations_equals_training_without(make, swap):
  watched = build(make=make, swap=swap)
  alone = build(make=make, swap=swap)
  for step in range(6):
    train(*watched, [step])
    train(*alone, [step])
    before = contents(watched[0])
    watched[2].swap_in()
    watched[2].swap_in()
    assert not torch.equal(watched[0].out.weight, before['out.weight']) or (
      step == 0
    )
    if step % 2:
      watched[2].swap_out()
      assert_same(contents(watched[0]), before)
  watched[2].swap_out()
  assert_same(contents(watched[0]), contents(alone[0]))


@pytest.mark.parametrize('swap', ['copy', 'exchange'])
@pytest.mark.parametrize('make', [nadamw, shampoo, sgd])
def test_a_second_averager_watches_y_and_leaves_training_alone(make, swap):
  model, optimizer, averager = build(make=make)
  watcher = Averager(model, Ema(0.5), batch_norm='current', swap=swap)
  alone = build(make=make)
  own, weight = None, None
  for step in range(6):
    train(model, optimizer, averager, [step])
    watcher.update()
    train(*alone, [step])
    y = model.out.weight.detach().clone()
    # The normalised EMA of y with a decay of 1/2.
    c = 0.5 / (1 - 0.5 ** (step + 1))
    own = y if own is None else own + c * (y - own)
    with watcher.evaluating():
      weight = model.out.weight.detach().clone()
    torch.testing.assert_close(weight, own)
    x = alone[2].averaged_model().out.weight
    with averager.evaluating():
      assert torch.equal(model.out.weight, x)
  assert_same(contents(model), contents(alone[0]))
  assert not torch.allclose(weight, x)


@pytest.mark.parametrize('make', [nadamw, sgd])
@pytest.mark.parametrize('swap', ['copy', 'exchange'])
@pytest.mark.parametrize('replace', [False, True])
def test_a_watcher_takes_no_sample_of_z(make, swap, replace):
  model, optimizer, averager = build(make=make)
  watcher = Averager(model, Ema(0.5), swap=swap)
  late = Averager(model, Ema(0.5), start=50)
  other = Averager(model, Ema(0.5), interpolation=0.5)
  if replace:
    train(model, optimizer, averager, range(2))
    state = averager.state_dict()
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    averager.load_state_dict(state)
    optimizer = make(model.parameters())
  train(model, optimizer, averager, range(2))
  watcher.update()
  backward(model, 2)
  with pytest.raises(RuntimeError, match=r'before_step\(optimizer\) before'):
    optimizer.step()
  averager.before_step(optimizer)
  calls = [watcher.update, watcher.swap_in, late.swap_in]
  calls.append(lambda: other.before_step(optimizer))
  for call in calls:
    with pytest.raises(RuntimeError, match=r'Call its update\(\) before'):
      call()
  optimizer.step()
  averager.update()
  watcher.update()
  assert watcher.samples == 2
  with watcher.evaluating():
    assert watcher.swapped


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


@settings(deadline=None, max_examples=25)
@given(
  st.lists(st.sampled_from(['train', 'bad', 'show', 'save']), max_size=12),
  st.sampled_from(sorted(SCHEMES)),
  st.sampled_from(['copy', 'exchange']),
  st.booleans(),
  st.sampled_from([{}, {'batch_norm': 'refreshed', 'refresh_every': 2}]),
)
def test_any_run_of_evaluations_and_resumptions_is_the_undisturbed_one(
  actions, scheme, swap, averager_first, statistics
):
  options = {'scheme': scheme, 'swap': swap, 'dtype': torch.float32}
  options |= statistics
  run, alone = build(**options), build(**options)
  step = 0
  for action in actions:
    if action == 'train':
      train(*run, [step])
      train(*alone, [step])
      step += 1
    elif action == 'bad':
      for one in (run, alone):
        one[2].swap_out()
        bad_step(*one, step)
    elif action == 'show':
      run[2].swap_in()
    elif action == 'save':
      run = restored(saved(*run), averager_first, **options)
  for *_, averager in (run, alone):
    averager.swap_out()
  assert_same(contents(run[0]), contents(alone[0]))
  for *_, averager in (run, alone):
    averager.swap_in()
  assert_same(contents(run[0]), contents(alone[0]))


@pytest.mark.parametrize('averager_first', [False, True])
def test_a_run_can_be_set_back(averager_first):
  run, alone = build(), build()
  train(*run, range(2))
  train(*alone, range(2))
  state = saved(*run)
  train(*run, [7, 8])
  for index in (2, 0, 1) if averager_first else (0, 1, 2):
    run[index].load_state_dict(state[index])
  for one in (run, alone):
    train(*one, [3])
  assert_same(contents(run[0]), contents(alone[0]))


@pytest.mark.parametrize('shown', [False, True])
@pytest.mark.parametrize('averager_first', [False, True])
@pytest.mark.parametrize('batch_norm', ['averaged', 'current'])
def test_a_bad_batch_after_a_resumption_returns_to_the_saved_statistics(
  shown, averager_first, batch_norm
):
  run = build(batch_norm=batch_norm)
  train(*run, range(3))
  before = contents(run[0])
  if shown:
    run[2].swap_in()
  state = saved(*run)
  resumed = restored(state, averager_first, batch_norm=batch_norm)
  resumed[2].swap_out()
  bad_step(*resumed, 3)
  assert resumed[2].skipped == 1
  assert_same(contents(resumed[0]), before)


def test_kept_statistics_are_checked_and_may_be_missing():
  run = build()
  train(*run, range(2))
  state = run[2].state_dict()
  other = build()[2]
  for wrong in ({}, {**state['statistics'], 'norm.running_var': torch.ones(2)}):
    with pytest.raises(
      ValueError, match=r"lacks.*'norm|'norm.running_var' has"
    ):
      other.load_state_dict(state | {'statistics': wrong})
    assert other.step == 0
  with pytest.raises(ValueError, match=r'statistics\. Must be a dict'):
    other.load_state_dict(state | {'statistics': []})
  # Nothing to keep: the parameters alone, without their layers.
  run = build(batch_norm='current')
  train(*run, range(2))
  pairs = Averager(
    network().named_parameters(), SCHEMES['ema'], interpolation=0.9
  )
  pairs.load_state_dict(run[2].state_dict())
  assert pairs.step == 2
  del state['statistics']  # as in states of earlier versions
  other.load_state_dict(state)
  assert other.step == 2


def test_a_checkpoint_of_an_evaluation_holds_the_average():
  run = build()
  train(*run, range(3))
  y = contents(run[0])
  run[2].swap_in()
  model, _, averager = saved(*run)
  assert_same(model, contents(run[0]))
  for name, value in averager['raw'].items():
    assert torch.equal(value, y[name])


@pytest.mark.parametrize(
  ('mu', 'message'),
  [(0.8, 'averaging_interpolation=0.9, this averager has'), (0.0, '0.9.*None')],
)
def test_a_state_of_another_interpolation_is_refused(mu, message):
  run = build()
  train(*run, range(2))
  other = build(mu=mu)[2]
  with pytest.raises(ValueError, match=message):
    other.load_state_dict(run[2].state_dict())
  with pytest.raises(ValueError, match='Invalid averager state'):
    run[2].load_state_dict(other.state_dict())


def test_a_state_without_its_weighting_is_refused():
  run = build('schedule_free')
  train(*run, range(2))
  state = run[2].state_dict()
  del state['weighting']
  with pytest.raises(ValueError, match=r'weighting=None\. Must hold'):
    build('schedule_free')[2].load_state_dict(state)


# Samples that are not finite, gradients that are clipped.


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


@pytest.mark.parametrize('batch_norm', ['averaged', 'current', 'refreshed'])
@pytest.mark.parametrize('beta1', [0.0, 0.3])
@pytest.mark.parametrize('bad_steps', [(0,), (3,), (3, 4)])
def test_a_step_that_is_not_finite_is_as_if_it_was_not_made(
  batch_norm, beta1, bad_steps
):
  runs = [
    build(
      mu=0.5,
      make=lambda params: nadamw(params, betas=(beta1, 0.9)),
      batch_norm=batch_norm,
      # Due after the same batches in both runs: never.
      **({'refresh_every': 100} if batch_norm == 'refreshed' else {}),
    )
    for _ in range(2)
  ]
  faulty, sound = runs
  for step in range(7):
    if step in bad_steps:
      bad_step(*faulty, step)
    else:
      for run in runs:
        train(*run, [step])
    found, expected = (everything(*run) for run in runs)
    assert fakes.differences(found, expected) == []
  assert faulty[2].skipped == len(bad_steps)
  assert sound[2].skipped == 0


def test_a_refresh_by_a_bad_batch_is_dropped():
  model, optimizer, averager = build(batch_norm='refreshed', refresh_every=2)
  train(model, optimizer, averager, range(3))
  with averager.evaluating():
    before = contents(model)
  with averager.refreshing():
    model(torch.full_like(batch(model, 0)[0], float('inf')))
  with averager.evaluating():
    assert_same(contents(model), before)
  with averager.refreshing():
    model(batch(model, 0)[0])
  with averager.evaluating():
    assert not torch.equal(model.norm.running_mean, before['norm.running_mean'])


class Later(finite.Looker):
  """Leaves the result on the device, as on an accelerator."""

  def look(self, tensors, dtensor_parameters=()):
    return finite.Look(multi_tensor.not_finite(tensors))


@pytest.mark.parametrize('beta1', [0.0, 0.3])
@pytest.mark.parametrize('bad_steps', [(0,), (3,), (3, 4)])
def test_a_step_left_out_on_the_device_is_taken_back_later(beta1, bad_steps):
  """Exact are z and the moments; y was x for a while, a rounding more."""
  runs = []
  for _ in range(2):
    model = network()
    weights = Weights(model, with_statistics=True)
    placement = PrimalPlacement(Ema(0.75), weights, 0.5, looker=Later())
    optimizer = nadamw(model.parameters(), betas=(beta1, 0.9))
    runs.append((model, optimizer, placement, weights))
  for step in range(7):
    looks = []
    for model, optimizer, placement, weights in runs:
      is_bad = step in bad_steps
      if is_bad and placement is runs[1][2]:
        continue
      backward(model, step)
      if is_bad:
        spoil(model)
      placement.begin([optimizer], is_sampled=True)
      optimizer.step()
      looks.append(placement.end(None, weights.statistics_now(False)))
    assert looks[0].must_skip() == (step in bad_steps)
    if looks[0].must_skip():
      runs[0][2].retract()
    faulty, sound = (
      {
        'count': placement.count,
        'weighting': placement.weighting(),
        'z': placement.buffers(),
        'y': contents(model),
        'optimizer': optimizer.state_dict(),
      }
      for model, optimizer, placement, _ in runs
    )
    if step < bad_steps[0]:
      assert fakes.differences(faulty, sound) == []
    if step == 0 in bad_steps:
      # Moments of zeros, and no step counted, or nothing yet.
      states = faulty['optimizer']['state'].values()
      assert not any(
        torch.as_tensor(t).any() for s in states for t in s.values()
      )
      continue
    # Roundings of float64.
    torch.testing.assert_close(faulty, sound, rtol=1e-11, atol=1e-13)


def test_a_state_that_was_loaded_since_is_not_uncounted():
  p = nn.Parameter(torch.ones(2))
  p.grad = torch.full_like(p, float('nan'))
  optimizer = nadamw([p])
  state = optimizer.state_dict()
  follower = {p: torch.ones(2)}
  optimizer.lead(Followers(follower, -0.5, 0.25, torch.ones(())))
  optimizer.step()
  assert optimizer.state[p]['step'] == 1
  optimizer.load_state_dict(optimizer.state_dict())
  optimizer.uncount()
  assert optimizer.state[p]['step'] == 1
  optimizer.load_state_dict(state)
  assert not optimizer.state[p]


def test_another_optimizers_step_that_is_not_finite_leaves_the_average():
  model, optimizer, averager = build(make=sgd)
  train(model, optimizer, averager, range(3))
  with averager.evaluating():
    average = contents(model)
  statistics = model.norm.running_mean.clone()
  bad_step(model, optimizer, averager, 3)
  assert (averager.samples, averager.skipped) == (3, 1)
  with averager.evaluating():
    for name, p in model.named_parameters():
      # x, recovered from y once more or once less.
      torch.testing.assert_close(p.data, average[name], rtol=1e-12, atol=1e-14)
  # Training continues from the average.
  for name, p in model.named_parameters():
    torch.testing.assert_close(p.data, average[name], rtol=1e-12, atol=1e-14)
  assert torch.equal(model.norm.running_mean, statistics)
  train(model, optimizer, averager, [4])
  assert averager.samples == 4


def test_a_finite_gradient_may_make_z_infinite():
  # 0 / 0 where the gradient is 0 and there is no eps: z is looked at.
  p = nn.Parameter(torch.tensor([1.0, 2.0]))
  optimizer = NadamW([p], lr=0.5, betas=(0.0, 0.9), eps=0.0)
  averager = Averager([('p', p)], Polynomial(0.0), interpolation=0.5)
  for gradient in (1.0, 0.0, 1.0):
    p.grad = torch.tensor([gradient, 1.0])
    averager.before_step(optimizer)
    optimizer.step()
    averager.update()
    assert torch.isfinite(p).all()
  assert (averager.samples, averager.skipped) == (3, 0)
  q = nn.Parameter(torch.tensor([1.0, 2.0]))
  optimizer = NadamW([q], lr=0.5, betas=(0.0, 0.9), eps=0.0)
  averager = Averager([('q', q)], Polynomial(0.0), interpolation=0.5)
  for gradient in (0.0, 1.0):
    q.grad = torch.tensor([gradient, 1.0])
    averager.before_step(optimizer)
    optimizer.step()
    averager.update()
    with averager.evaluating():
      assert torch.isfinite(q).all()
  assert (averager.samples, averager.skipped) == (1, 1)


def test_a_first_step_that_is_not_finite_is_no_sample():
  model, optimizer, averager = build(make=sgd)
  start = contents(model)
  backward(model, 0)
  model.out.bias.grad[0] = float('inf')
  averager.before_step(optimizer)
  optimizer.step()
  averager.update()
  assert (averager.samples, averager.skipped) == (0, 1)
  for name, p in model.named_parameters():
    assert torch.equal(p.data, start[name])


def test_a_sample_that_is_left_out_has_no_weight():
  runs = [build('schedule_free', sgd, mu=0.5) for _ in range(2)]
  for _, optimizer, _ in runs:
    optimizer.param_groups[0]['lr'] = 0.0
  faulty, sound = runs
  for step in range(4):
    for model, optimizer, averager in (faulty, sound):
      if step == 2 and model is sound[0]:
        continue
      backward(model, step)
      optimizer.param_groups[0]['lr'] = 3.0 if step == 2 else 0.5
      if step == 2:
        model.idle.grad = torch.full_like(model.idle, float('nan'))
      averager.before_step(optimizer)
      optimizer.step()
      averager.update()
  states = [averager.state_dict() for *_, averager in runs]
  assert states[0]['weighting'] == states[1]['weighting']
  assert states[0]['samples'] == states[1]['samples'] == 3


def test_a_skipped_step_of_the_optimizer_is_a_sample_of_the_same_z():
  # As GradScaler does where gradients overflow.
  model, optimizer, averager = build('polyak')
  train(model, optimizer, averager, range(2))
  z = [t.clone() for t in averager.placement._other]
  backward(model, 2)
  averager.before_step(optimizer)
  averager.update()
  assert averager.samples == 3
  for a, b in zip(z, averager.placement._other, strict=True):
    assert torch.equal(a, b)
  train(model, optimizer, averager, [3])


# Misuse.


def test_a_step_that_was_not_made_hands_nothing_to_a_later_one():
  """GradScaler left out the call of step(): the next one is not left out."""
  p, q = (nn.Parameter(torch.zeros(1)) for _ in range(2))
  averager = Averager([('p', p), ('q', q)], Ema(0.5), interpolation=0.5)
  one, other = nadamw([p]), sgd([q])
  p.grad = torch.ones(1)
  averager.before_step(one)
  one.step()
  averager.update()
  p.grad = torch.full((1,), float('inf'))
  averager.before_step(one)
  averager.update()
  before = p.item()
  p.grad, q.grad = torch.ones(1), torch.ones(1)
  averager.before_step(one, other)
  one.step()
  other.step()
  averager.update()
  assert p.item() < before


def test_a_step_before_the_first_sample_takes_nothing_over():
  """GradScaler left out the first sample: a later step was not made."""
  p = nn.Parameter(torch.zeros(1))
  averager = Averager([('p', p)], Ema(0.5), interpolation=0.5, every=2)
  optimizer, seen = nadamw([p]), [0.0]
  for gradient in (1.0, float('inf'), 1.0):
    p.grad = torch.full((1,), gradient)
    averager.before_step(optimizer)
    if gradient == 1.0:
      optimizer.step()
    averager.update()
    seen.append(p.item())
  assert seen[3] < seen[2] == seen[1] < 0.0


@pytest.mark.parametrize('make', [nadamw, sgd])
def test_a_sample_that_the_caller_refuses_leaves_the_average(make):
  model = nn.ParameterDict(
    {
      name: nn.Parameter(torch.ones(1, dtype=torch.float64))
      for name in ('always', 'once', 'never')
    }
  )
  optimizer = make(model.parameters())
  averager = Averager(model, Ema(0.75), interpolation=0.5)
  for step in range(3):
    with averager.evaluating():
      before = contents(model)
    for name, has_gradient in (('always', True), ('once', step == 1)):
      gradient = torch.ones(1, dtype=torch.float64)
      model[name].grad = gradient if has_gradient else None
    averager.before_step(optimizer)
    optimizer.step()
    averager.update(finite=False if step == 2 else None)
  assert (averager.samples, averager.skipped) == (2, 1)
  with averager.evaluating():
    shown = contents(model)
  y, z = contents(model), averager.state_dict()['buffers'][0]
  for name, x in before.items():
    # y and z continue from x. float64: a half of y is divided out again.
    for found in (shown, y, z):
      torch.testing.assert_close(found[name], x, rtol=1e-14, atol=0)


@pytest.mark.parametrize('make', [nadamw, shampoo, torch.optim.SGD])
def test_a_step_without_gradients_is_a_sample_of_the_same_z(make):
  model = nn.Linear(2, 1)
  before = [p.detach().clone() for p in model.parameters()]
  optimizer = make(model.parameters())
  averager = Averager(model, Ema(0.5), interpolation=0.75)
  for count in (1, 2):
    averager.before_step(optimizer)
    optimizer.step()
    averager.update()
    assert averager.samples == count
  # x, y and z are the same; they differ by a rounding of the lines in y.
  torch.testing.assert_close([*model.parameters()], before)


def test_a_step_from_y_is_refused_before_it_writes():
  for make in (nadamw, shampoo, sgd):
    model, optimizer, averager = build(make=make)
    train(model, optimizer, averager, range(2))
    backward(model, 2)
    before = contents(model)
    with pytest.raises(RuntimeError, match=r'before_step\(optimizer\) before'):
      optimizer.step()
    with pytest.raises(RuntimeError, match=r'before_step\(optimizer\) before'):
      averager.update()
    assert_same(contents(model), before)


def test_a_closure_is_refused():
  model, optimizer, averager = build(make=sgd)
  backward(model, 0)
  averager.before_step(optimizer)
  for call in ((lambda: 0.0,), ()):
    with pytest.raises(RuntimeError, match='Invalid closure'):
      optimizer.step(*call, **({} if call else {'closure': lambda: 0.0}))


def test_an_averager_that_is_gone_refuses_nothing():
  model, optimizer, averager = build(make=sgd)
  del averager
  gc.collect()
  backward(model, 0)
  optimizer.step()


def set_weights(model):
  model.out.weight.data = torch.zeros_like(model.out.weight)


def load_weights(model):
  model.load_state_dict(model.state_dict())


def assign_weights(model):
  model.load_state_dict(network().state_dict(), assign=True)


def write_weights(model):
  with torch.no_grad():
    model.out.bias.zero_()


@pytest.mark.parametrize(
  'change', [set_weights, load_weights, assign_weights, write_weights]
)
def test_weights_that_were_changed_between_steps_are_named(change):
  model, optimizer, averager = build()
  train(model, optimizer, averager, range(2))
  change(model)
  for call in (
    averager.swap_in,
    averager.averaged_state_dict,
    lambda: averager.before_step(optimizer),
  ):
    with pytest.raises(RuntimeError, match=r"since the last update\(\): '"):
      call()
  assert not averager.swapped


@pytest.mark.parametrize('model_first', [True, False])
def test_the_model_may_be_restored_before_or_after(model_first):
  model, optimizer, averager = build()
  train(model, optimizer, averager, range(2))
  weights, state = contents(model), copy.deepcopy(averager.state_dict())
  train(model, optimizer, averager, [2])
  if model_first:
    model.load_state_dict(weights)
  averager.load_state_dict(state)
  if not model_first:
    model.load_state_dict(weights)
  averager.before_step(optimizer)


def test_calls_within_a_step_are_refused():
  model, optimizer, averager = build()
  train(model, optimizer, averager, range(2))
  state = copy.deepcopy(averager.state_dict())
  backward(model, 2)
  averager.before_step(optimizer)
  for call in (
    averager.swap_in,
    averager.state_dict,
    averager.averaged_state_dict,
    lambda: averager.load_state_dict(state),
  ):
    with pytest.raises(RuntimeError, match='The model holds z'):
      call()
  with pytest.raises(RuntimeError, match='called twice'):
    averager.before_step(optimizer)
  optimizer.step()
  averager.update()
  averager.swap_in()
  with pytest.raises(RuntimeError, match=r'swap_out\(\) before before_step'):
    averager.before_step(optimizer)


@pytest.mark.parametrize('scheme', [Lawa(2), Raw(), Auto('ema 0.1')])
def test_averages_that_are_no_recursion_are_refused(scheme):
  with pytest.raises(
    ValueError, match=r'interpolation=0\.9\. .* ema or polynomial or schedule'
  ):
    Averager(network(), scheme, interpolation=0.9, total_steps=100)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'interpolation': 1.0}, r'interpolation=1\.0\. Must be in \[0, 1\)'),
    ({'interpolation': -0.1}, r'Must be in \[0, 1\)'),
    ({'interpolation': float('nan')}, r'Must be in \[0, 1\)'),
    ({'interpolation': 'much'}, r"interpolation='much'\. Must be in"),
    (
      {'interpolation': 0.9, 'placement': 'cpu'},
      "placement='cpu'. Must be device with interpolation=0.9: each step",
    ),
    ({'interpolation': 0.9, 'placement': 'sharded'}, 'Must be device with'),
    ({'batch_norm': 'refreshed'}, r"'refreshed'\. Must be averaged or current"),
    ({'refresh_every': 5}, 'refresh_every=5. It has no effect with batch_n'),
    (
      {'interpolation': 0.9, 'batch_norm': 'refreshed', 'refresh_every': 0},
      r'refresh_every=0\. Must be an integer in \[1, inf\)',
    ),
  ],
)
def test_arguments_are_checked(options, message):
  with pytest.raises(ValueError, match=message):
    Averager(network(), Ema(0.5), **options)


def test_schedule_free_needs_an_interpolation():
  assert Averager(network(), ScheduleFree()).interpolation == 0.9
  with pytest.raises(ValueError, match=r'in \(0, 1\) for schedule_free; with'):
    Averager(network(), ScheduleFree(), interpolation=0.0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_parameters_of_16_bits_are_refused(dtype):
  message = rf"'0\.weight' is {re.escape(str(dtype))}"
  with pytest.raises(ValueError, match=message):
    Averager(
      nn.Sequential(nn.Linear(2, 2)).to(dtype), Ema(0.5), interpolation=0.9
    )


@pytest.mark.parametrize(
  'clone',
  [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))],
  ids=['deepcopy', 'pickle'],
)
def test_a_copy_trains_on_by_itself(clone):
  parts = build()
  train(*parts, range(3))
  other = clone(parts)
  before = contents(parts[0])
  with pytest.raises(RuntimeError, match=r'before_step\(optimizer\) before'):
    other[1].step()
  train(*other, range(3, 6))
  assert_same(contents(parts[0]), before)
  train(*parts, range(3, 6))
  assert_same(contents(parts[0]), contents(other[0]))


def test_the_guard_outlives_another_averager_of_the_model():
  model, optimizer, averager = build()
  train(model, optimizer, averager, range(2))
  other = Averager(model, Ema(0.5), interpolation=0.5)
  train(model, optimizer, averager, [2])
  del other
  gc.collect()
  before = contents(model)
  backward(model, 3)
  with pytest.raises(RuntimeError, match=r'before_step\(optimizer\) before'):
    optimizer.step()
  assert_same(
    {k: v for k, v in contents(model).items() if 'norm' not in k},
    {k: v for k, v in before.items() if 'norm' not in k},
  )


def test_the_largest_learning_rate_is_resumed():
  """The rate has fallen since, so only the state knows it."""
  results = []
  for resumed in (False, True):
    model, optimizer, averager = build('schedule_free')
    for step, rate in enumerate((0.1, 0.4, 0.2, 0.1)):
      if resumed and step == 3:
        fresh = build('schedule_free')
        fresh[0].load_state_dict(model.state_dict())
        fresh[1].param_groups[0]['lr'] = optimizer.param_groups[0]['lr']
        fresh[1].load_state_dict(optimizer.state_dict())
        fresh[2].load_state_dict(copy.deepcopy(averager.state_dict()))
        model, optimizer, averager = fresh
      optimizer.param_groups[0]['lr'] = rate
      train(model, optimizer, averager, [step])
    results.append(contents(model))
  assert_same(*results)


def test_states_of_other_libraries_are_refused():
  model, optimizer, averager = build()
  train(model, optimizer, averager, range(2))
  state = averager.export_state('torch')
  with pytest.raises(ValueError, match=r'interpolation=0\.9\. Must be 0: the'):
    averager.import_state(state, 'torch')


@pytest.mark.parametrize(
  ('make', 'momentum'),
  [
    (lambda p: NadamW(p, betas=(0.9, 0.99)), '0.9'),
    (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8), '0.8'),
    (
      lambda p: DistributedShampoo(p, lr=0.1, momentum=0.7, betas=(0, 1)),
      '0.7',
    ),
  ],
)
def test_a_momentum_beside_the_interpolation_warns_once(make, momentum):
  model, optimizer, averager = build(make=make, dtype=torch.float32)
  message = f'has another one of {re.escape(momentum)}'
  with pytest.warns(UserWarning, match=message):
    train(model, optimizer, averager, [0])
  train(model, optimizer, averager, [1])
  model, optimizer, averager = build(make=make, mu=0.5, dtype=torch.float32)
  train(model, optimizer, averager, [0])


# Configuration.


def test_a_point_gives_the_interpolation():
  config = AveragingConfig.from_point(
    averaging_scheme='ema', averaging_horizon=0.1, averaging_interpolation=0.9
  )
  averager = Averager.from_config(network(), config, budget=1000)
  assert averager.interpolation == 0.9
  # Each step is a sample: 10 % of 1000 steps are 100 samples.
  assert averager.sampling.every == 1
  assert averager.scheme == Ema(decay=0.99)


def test_the_schedule_free_point_has_an_interpolation_of_its_own():
  config = AveragingConfig.from_point(averaging_scheme='schedule_free')
  averager = Averager.from_config(network(), config, budget=1000)
  assert (averager.interpolation, averager.sampling.every) == (0.9, 1)


@pytest.mark.parametrize(
  ('point', 'message'),
  [
    (
      {'averaging_scheme': 'lawa'},
      r'interpolation=0\.9\. Train',
    ),
    (
      {'averaging_scheme': 'auto'},
      r'interpolation=0\.9\. Train',
    ),
    ({'averaging_scheme': 'none'}, 'It has no effect with'),
    ({'averaging_interpolation': 1.0}, r'averaging_interpolation=1\.0'),
    ({'averaging_placement': 'cpu'}, "averaging_placement='cpu'. Must be dev"),
  ],
)
def test_points_are_checked(point, message):
  values = {'averaging_scheme': 'ema', 'averaging_interpolation': 0.9} | point
  with pytest.raises(ValueError, match=message):
    AveragingConfig.from_point(**values)


def test_a_horizon_follows_a_budget_that_is_planned_anew():
  config = AveragingConfig.from_point(
    averaging_scheme='ema', averaging_horizon=0.1, averaging_interpolation=0.9
  )
  runs = []
  for _ in range(2):
    model = network()
    averager = Averager.from_config(model, config, budget=1000)
    runs.append((model, nadamw(model.parameters()), averager))
  run, fresh = runs
  train(*run, range(3))
  for _, _, averager in runs:
    averager.resample(config.sampling(500), config.scheme_in(500))
  # 10 % of 500 steps are 50 samples.
  assert run[2].scheme == Ema(decay=0.98)
  train(*run, [3])
  for part, state in zip(fresh, saved(*run), strict=True):
    part.load_state_dict(state)
  for one in runs:
    train(*one, [4])
  assert_same(contents(run[0]), contents(fresh[0]))
  unwatched = Averager.from_config(network(), config, budget=1000)
  with pytest.raises(ValueError, match=r'saved with decay=0\.98, this'):
    unwatched.load_state_dict(run[2].state_dict())


@pytest.mark.parametrize('wrong', [(), (object(),)])
def test_a_step_needs_its_optimizers(wrong):
  model = nn.Linear(1, 1)
  averager = Averager(model, ScheduleFree())
  with pytest.raises(ValueError, match=r'Invalid optimizers=\((object)?\)\.'):
    averager.before_step(*wrong)
  assert averager.samples == 0


def test_refreshing_leaves_the_buffers_of_other_layers_alone():
  spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
  model = nn.Sequential(spectral, nn.BatchNorm1d(3), nn.Linear(3, 1))
  averager = Averager(
    model, ScheduleFree(), batch_norm='refreshed', refresh_every=1
  )
  optimizer = NadamW(model.parameters(), betas=(0.0, 0.9))
  model(torch.randn(8, 3)).square().sum().backward()
  averager.before_step(optimizer)
  optimizer.step()
  averager.update()
  before = {k: v.clone() for k, v in model.named_buffers()}
  with averager.refreshing():
    model(torch.randn(8, 3))
  for name, buffer in model.named_buffers():
    assert torch.equal(buffer, before[name]), name


def test_a_step_that_cannot_begin_is_not_counted():
  model = nn.Sequential(nn.Embedding(4, 2, sparse=True), nn.Linear(2, 1))
  averager = Averager(model, Ema(0.5), interpolation=0.9)
  optimizer = NadamW(model.parameters(), betas=(0.0, 0.9))
  model(torch.tensor([1])).sum().backward()
  with pytest.raises(Exception, match='sparse'):
    averager.before_step(optimizer)
  assert averager.samples == 0
  averager.state_dict()  # which a step that has begun refuses
