"""Training at an average: misuse is refused before it writes."""

import copy
import gc
import pickle
import re
import types
import weakref

import pytest
import torch
from primal_runs import (
  backward,
  build,
  contents,
  nadamw,
  network,
  sgd,
  shampoo,
  train,
)
from tensors import assert_same_by_name
from torch import nn

from weightavg import Auto, Ema, Lawa, ScheduleFree
from weightavg.pytorch import Averager, NadamW, training_point
from weightavg.pytorch.shampoo import DistributedShampoo
from weightavg.schemes import Raw


@pytest.mark.parametrize('make', [sgd, nadamw])
def test_a_step_that_was_interrupted_while_it_wrote_is_refused(
  make, monkeypatch
):
  net, optimizer, averager = build(make=make, batch_norm='refreshed')
  train(net, optimizer, averager, range(2))
  saved = copy.deepcopy([net.state_dict(), averager.state_dict()])
  backward(net, 2)
  with monkeypatch.context() as patched:

    def interrupt(placement):
      raise KeyboardInterrupt

    patched.setattr(type(averager.placement), '_exchange', interrupt)
    with pytest.raises(KeyboardInterrupt):
      averager.before_step(optimizer)
  for call in (
    lambda: averager.before_step(optimizer),
    averager.update,
    averager.swap_in,
    averager.state_dict,
    averager.averaged_state_dict,
    averager.refreshing().__enter__,
  ):
    with pytest.raises(RuntimeError, match=r'interrupted.*Load a state'):
      call()
  net.load_state_dict(saved[0])
  averager.load_state_dict(saved[1])
  assert_same_by_name(
    averager.state_dict()['buffers'][0], saved[1]['buffers'][0]
  )
  train(net, optimizer, averager, range(2, 3))


@pytest.mark.parametrize('interpolation', [False, True])
def test_a_bool_is_no_interpolation(interpolation):
  with pytest.raises(
    ValueError, match=r'Invalid interpolation=(Fals|Tru)e\. M'
  ):
    Averager(nn.Linear(1, 1), Ema(0.5), interpolation=interpolation)


def test_schedule_free_is_no_candidate():
  with pytest.raises(ValueError, match=r'Invalid averaging_candidates\. Sched'):
    Averager(nn.Linear(1, 1), Auto([ScheduleFree(), Ema(0.5)]), every=1)


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
    assert_same_by_name(contents(model), before)


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


def test_averagers_share_a_hook_and_the_last_takes_it_along(monkeypatch):
  monkeypatch.setattr(training_point, '_PLACEMENTS', weakref.WeakSet())
  monkeypatch.setattr(training_point, '_HOOKS', [])
  registered = []

  def register(hook):
    registered.append(hook)
    return types.SimpleNamespace(remove=lambda: registered.remove(hook))

  monkeypatch.setattr(
    training_point, 'register_optimizer_step_pre_hook', register
  )
  for _ in range(2):
    averagers = [build()[2] for _ in range(3)]
    assert len(registered) == 1
    averagers.pop()
    gc.collect()
    assert len(registered) == 1
    del averagers
    gc.collect()
    assert registered == []


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


def test_the_average_in_the_trained_model_ends_its_training():
  """Otherwise x would be computed from x and z."""
  model, optimizer, averager = build()
  train(model, optimizer, averager, range(2))
  averager.copy_to(model)
  with pytest.raises(RuntimeError, match=r"since the last update\(\): '"):
    averager.before_step(optimizer)


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
  assert_same_by_name(contents(parts[0]), before)
  train(*parts, range(3, 6))
  assert_same_by_name(contents(parts[0]), contents(other[0]))


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
  assert_same_by_name(
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
  assert_same_by_name(*results)


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


@pytest.mark.parametrize('wrong', [(), (object(),)])
def test_a_step_needs_its_optimizers(wrong):
  model = nn.Linear(1, 1)
  averager = Averager(model, ScheduleFree())
  with pytest.raises(ValueError, match=r'Invalid optimizers=\((object)?\)\.'):
    averager.before_step(*wrong)
  assert averager.samples == 0


def test_a_step_that_cannot_begin_is_not_counted():
  model = nn.Sequential(nn.Embedding(4, 2, sparse=True), nn.Linear(2, 1))
  averager = Averager(model, Ema(0.5), interpolation=0.9)
  optimizer = NadamW(model.parameters(), betas=(0.0, 0.9))
  model(torch.tensor([1])).sum().backward()
  with pytest.raises(RuntimeError, match='NadamW takes no sparse tensors'):
    averager.before_step(optimizer)
  assert averager.samples == 0
  averager.state_dict()  # which a step that has begun refuses
