"""Training at an average: swaps, and resumption at every phase."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from primal_runs import (
  SCHEMES,
  backward,
  bad_step,
  build,
  contents,
  nadamw,
  network,
  restored,
  saved,
  sgd,
  shampoo,
  train,
)
from tensors import assert_same_by_name

from weightavg import (
  Ema,
)
from weightavg.pytorch import Averager


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
      assert_same_by_name(contents(watched[0]), before)
  watched[2].swap_out()
  assert_same_by_name(contents(watched[0]), contents(alone[0]))


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
  assert_same_by_name(contents(model), contents(alone[0]))
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
  assert_same_by_name(contents(run[0]), contents(alone[0]))
  for *_, averager in (run, alone):
    averager.swap_in()
  assert_same_by_name(contents(run[0]), contents(alone[0]))


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
  assert_same_by_name(contents(run[0]), contents(alone[0]))


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
  assert_same_by_name(contents(resumed[0]), before)


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
  assert_same_by_name(model, contents(run[0]))
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
