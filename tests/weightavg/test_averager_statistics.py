"""Running statistics and counts beside averaged weights."""

import copy

import pytest
import torch
from averager_runs import (
  SWAPS,
  averaged,
  averager_of,
  build,
  config,
  train_step,
)
from torch import nn

from weightavg import AveragingConfig


def test_running_statistics_are_current_or_averaged():
  for mode in ('current', 'averaged'):
    model, optimizer, averager = build('polyak', averaging_batch_norm=mode)
    means, variances = [], []
    for step in range(3):
      train_step(model, optimizer, step)
      averager.update()
      means.append(model.norm.running_mean.clone())
      variances.append(model.norm.running_var.clone())
    expected = means[-1] if mode == 'current' else sum(means) / 3
    with averager.evaluating():
      # Three float32 additions.
      torch.testing.assert_close(
        model.norm.running_mean, expected, rtol=1e-6, atol=1e-7
      )
      shown = variances[-1] if mode == 'current' else sum(variances) / 3
      torch.testing.assert_close(
        model.norm.running_var, shown, rtol=1e-6, atol=1e-7
      )
      assert model.norm.num_batches_tracked == 3
    assert torch.equal(model.norm.running_mean, means[-1])


class Replacing(nn.Module):
  """Replaces its statistics in each step, as AlgoPerf's speech models do."""

  def __init__(self):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(2))
    self.register_buffer('running_mean', torch.zeros(2))

  def forward(self, value):
    if self.training:
      self.running_mean = torch.full((2,), value)
    return self.weight * self.running_mean


@pytest.mark.parametrize('swap', SWAPS)
def test_statistics_that_a_layer_replaces_are_followed(swap):
  model = nn.Sequential(Replacing())
  averager = averager_of(model, config('polyak', averaging_swap=swap), budget=3)
  for value in (1.0, 2.0, 6.0):
    model(value)
    averager.update()
  with averager.evaluating():
    assert model.eval()(None).tolist() == [3.0, 3.0]
    state = averager.state_dict()
    assert state['raw']['0.running_mean'].tolist() == [6.0, 6.0]
  assert model[0].running_mean.tolist() == [6.0, 6.0]
  model.train()(5.0)
  assert model[0].running_mean.tolist() == [5.0, 5.0]


def test_a_sample_of_statistics_outlives_the_next_forward():
  model = nn.Sequential(Replacing())
  taken = []
  averager = averager_of(model, config('ema'), budget=10)
  add = averager.placement.add
  averager.placement.add = lambda tensors: (taken.append(tensors), add(tensors))
  model(1.0)
  averager.update()
  model[0].running_mean.fill_(9.0)
  assert taken[0][1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize('swap', SWAPS)
def test_recomputed_statistics_do_not_write_to_the_average(swap):
  model, averager = averaged('ema', averaging_swap=swap)
  with averager.evaluating():
    shown = model.norm.running_mean.clone()
    batches = [torch.full((8, 3, 5, 5), 9.0)]
    torch.optim.swa_utils.update_bn(batches, model)
    assert not torch.equal(model.norm.running_mean, shown)
  with averager.evaluating():
    assert torch.equal(model.norm.running_mean, shown)


@pytest.mark.parametrize('swap', SWAPS)
def test_recomputed_statistics_leave_the_counts_of_batches_alone(swap):
  """A BatchNorm without momentum weighs its next batch by its count."""
  model, averager = averaged('ema', averaging_swap=swap)
  model.norm.momentum = None
  before = copy.deepcopy(model.norm)
  batches = [torch.full((8, 3, 5, 5), 9.0)]
  with averager.evaluating():
    torch.optim.swa_utils.update_bn(batches, model)
    assert model.norm.num_batches_tracked == 1
  assert model.norm.num_batches_tracked == before.num_batches_tracked > 1
  inputs = torch.full((8, 4, 5, 5), 2.0)
  assert torch.equal(model.norm(inputs), before(inputs))
  assert torch.equal(model.norm.running_mean, before.running_mean)


def resumed_from(saved, model_first):
  """A new model and its averager, from the states of both in either order."""
  model, averager = averaged('ema')
  pairs = list(zip((model, averager), saved, strict=True))
  for part, state in pairs if model_first else reversed(pairs):
    part.load_state_dict(state)
  return model, averager


@pytest.mark.parametrize('model_first', [False, True])
def test_a_state_without_counts_leaves_the_models_count(model_first):
  """States of earlier versions have none."""
  model, averager = averaged('ema')
  model.norm.num_batches_tracked += 7
  before = model.norm.num_batches_tracked.item()
  averager.swap_in()
  saved = copy.deepcopy([model.state_dict(), averager.state_dict()])
  del saved[1]['counters']
  resumed, other = resumed_from(saved, model_first)
  other.swap_out()
  assert resumed.norm.num_batches_tracked == before


@pytest.mark.parametrize('recompute', [False, True])
@pytest.mark.parametrize('model_first', [False, True])
def test_counts_survive_a_save_while_an_average_is_shown(
  model_first, recompute
):
  model, averager = averaged('ema')
  model.norm.num_batches_tracked += 7  # not the count of a new model
  before = model.norm.num_batches_tracked.item()
  assert 'counters' not in averager.state_dict()
  averager.swap_in()
  if recompute:
    torch.optim.swa_utils.update_bn([torch.full((8, 3, 5, 5), 9.0)], model)
  saved = copy.deepcopy([model.state_dict(), averager.state_dict()])
  resumed, other = resumed_from(saved, model_first)
  other.swap_out()
  assert resumed.norm.num_batches_tracked == before
  with pytest.raises(ValueError, match=r"state: counters=\['norm"):
    other.load_state_dict(saved[1] | {'counters': ['norm']})


def test_statistics_may_be_on_several_devices():
  model = nn.Sequential(Replacing(), Replacing().to('meta'))
  averager = averager_of(model, config('ema'), budget=3)
  model[0](1.0)
  averager.update(finite=True)
  averager.update(finite=True)
  assert averager.samples == 2


@pytest.mark.parametrize('scheme', ['none', 'ema'])
@pytest.mark.parametrize('has_statistics', [False, True])
def test_kinds_of_statistics_matter_only_where_there_are_some(
  scheme, has_statistics
):
  model = nn.BatchNorm1d(2) if has_statistics else nn.Linear(2, 1)
  chosen = AveragingConfig.from_point(averaging_scheme=scheme)
  saved = averager_of(model, chosen, budget=1000).state_dict()
  saved['recipe']['averaging_batch_norm'] = 'current'
  averager = averager_of(model, chosen, budget=1000)
  if has_statistics and scheme == 'ema':
    with pytest.raises(ValueError, match='saved with averaging_batch_norm='):
      averager.load_state_dict(saved)
  else:
    averager.load_state_dict(saved)


def test_integers_are_not_averaged():
  with pytest.raises(
    ValueError, match=r"'n' is torch.int64\. Must be floating"
  ):
    averager_of(
      [('n', torch.ones(1, dtype=torch.int64))], config('ema'), budget=1
    )
