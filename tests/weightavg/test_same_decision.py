"""Three gloo ranks, a NaN on one of them: all skip the sample, or the step."""

import decision_ranks
import fakes
import pytest
import torch
from gloo import run_on_ranks
from torch import nn

from weightavg import Ema
from weightavg.pytorch import Averager
from weightavg.pytorch.shampoo import DistributedShampoo


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
  folder = tmp_path_factory.mktemp('ranks')
  run_on_ranks(3, decision_ranks.run_scenarios, str(folder))
  return [
    torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(3)
  ]


def alone(scheme, selected=0):
  """One process whose own weights hold the NaN."""
  model = decision_ranks.make()
  averager = Averager(model, scheme, every=1, total_steps=decision_ranks.STEPS)
  if selected:
    averager.select(selected)
  decision_ranks.follow(model, averager, True)
  return decision_ranks.held(model, averager)


@pytest.mark.parametrize('placement', decision_ranks.PLACEMENTS)
@pytest.mark.parametrize('name', decision_ranks.SCHEMES)
def test_a_sample_that_one_rank_must_skip_is_skipped_by_all(
  ranks, name, placement
):
  selected = 1 if name == 'auto' else 0
  expected = alone(decision_ranks.SCHEMES[name], selected)
  assert expected['skipped'] == 1
  for result in ranks:
    found = result['every_scheme'][f'{name} {placement}']
    assert fakes.differences(found, expected) == []


@pytest.mark.parametrize('placement', decision_ranks.PLACEMENTS)
def test_a_group_of_the_ranks_decides_together(ranks, placement):
  assert ranks[0]['in_a_group'] == {}
  expected = alone(Ema(0.5))
  first, second = (ranks[rank]['in_a_group'][placement] for rank in (1, 2))
  for found in (first, second):
    assert (found['samples'], found['skipped']) == (5, 1)
    # The model's other parameters are BatchNorm's.
    assert fakes.differences(found['average'][:2], expected['average']) == []
    # Those of rank 1, whose running mean is the constant 1.
    torch.testing.assert_close(found['mean'], torch.ones(3))
  assert first['complete']
  assert second['complete'] == (placement != 'sharded')


def test_an_averager_on_one_rank_waits_for_no_other(ranks):
  assert fakes.differences(ranks[0]['on_one_rank'], alone(Ema(0.5))) == []


@pytest.mark.parametrize('name', ['nadamw', 'sgd'])
def test_primal_averaging_leaves_a_step_out_on_all_ranks(ranks, name):
  first, *others = (result['at_the_average'] for result in ranks)
  before, after = (first[f'{name} {when}'] for when in ('before', 'after'))
  assert after['skipped'] == 1
  if name == 'nadamw':
    # It was told to make no step. Another optimizer's z is dropped.
    assert fakes.differences(after['raw'], before['raw']) == []
  else:
    assert fakes.differences(after['raw'], after['average']) == []
  assert first[name]['samples'] == decision_ranks.STEPS - 1
  for found in others:
    assert fakes.differences(found, first) == []
  assert all(torch.isfinite(t).all() for t in first[name]['raw'])


def test_the_ranks_agree_by_one_collective_for_each_sample(ranks):
  for result in ranks:
    assert result['counted'] == {'alone': 0, 'collective': 3}


@pytest.mark.parametrize('ranks_per_group', ['-1', '1'])
def test_shampoo_skips_or_refuses_a_step_on_all_ranks(ranks, ranks_per_group):
  found = [result['shampoo'][ranks_per_group] for result in ranks]
  first = found[0]['weights']
  for result in found:
    assert result['skipped'] == 1
    assert fakes.differences(result['weights'], first) == []
  errors = [result['error'] for result in found]
  assert "gradient of 'weight'. Must be finite" in errors[1]
  for error in (errors[0], errors[2]):
    assert 'a parameter on another rank. Must be finite' in error


@pytest.mark.parametrize('collective', [None, 1, 'default'])
def test_collective_is_a_flag_or_a_group(collective):
  with pytest.raises(ValueError, match=r'^Invalid collective='):
    Averager(nn.Linear(2, 1), Ema(0.5), collective=collective)


def test_a_process_alone_needs_no_group():
  averager = Averager(nn.Linear(2, 1), Ema(0.5), collective=True)
  averager.update()
  assert averager.samples == 1
  weight = nn.Parameter(torch.ones(2))
  optimizer = DistributedShampoo([weight], lr=0.1)
  weight.grad = torch.ones(2)
  optimizer.step()
  assert not torch.equal(weight, torch.ones(2))
