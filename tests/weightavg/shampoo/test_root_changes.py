"""Roots that are taken at other steps, and states that tell which were."""

import pytest
import shampoo_ranks
import torch
from shampoo_ranks import assert_same, saved, snapshot

from weightavg.pytorch.shampoo import DistributedShampoo


def test_a_change_of_the_roots_schedule_is_resumed_bit_for_bit():
  def change(optimizer):
    optimizer.param_groups[0].update(precondition_frequency=3)

  options = {'spread_roots': True, 'precondition_frequency': 4}
  weights, optimizer = shampoo_ranks.build(**options)
  shampoo_ranks.train(weights, optimizer, 1, 5)
  change(optimizer)
  shampoo_ranks.train(weights, optimizer, 6, 7)
  state, values = saved(optimizer), shampoo_ranks.trained(weights)
  shampoo_ranks.train(weights, optimizer, 8, 14)
  again, resumed = shampoo_ranks.build(**options)
  resumed.load_state_dict(state)
  shampoo_ranks.restore(again, values)
  shampoo_ranks.train(again, resumed, 8, 14)
  assert_same(snapshot(again, resumed), snapshot(weights, optimizer))


def two_numbers(**options):
  weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
  given = {
    'lr': 0.1,
    'betas': (0.0, 0.9),
    'preconditioner_dtype': torch.float64,
  }
  return weight, DistributedShampoo([('w', weight)], **(given | options))


def steps_of(weight, optimizer, first, last, **changes):
  """Make steps with one gradient; where each of them went."""
  optimizer.param_groups[0].update(changes)
  found = {}
  for step in range(first, last + 1):
    before = weight.detach().clone()
    weight.grad = torch.tensor([1.0, 100.0], dtype=torch.float64)
    optimizer.step()
    found[step] = (before - weight.detach()).tolist()
  return found


@pytest.mark.parametrize('spread', [False, True])
def test_roots_stay_in_use_when_they_are_taken_less_often(spread):
  weight, optimizer = two_numbers(
    precondition_frequency=5, grafting=None, spread_roots=spread
  )
  before = steps_of(weight, optimizer, 1, 8)
  # Without a method to graft there is no step before the first root.
  idle = [step for step, went in before.items() if went == [0, 0]]
  assert idle == [1, 2, 3, 4]
  after = steps_of(weight, optimizer, 9, 12, precondition_frequency=20)
  assert [*after.values()] == 4 * [pytest.approx(before[8])]
  # A resumed run knows it, too.
  again, resumed = two_numbers(precondition_frequency=20, grafting=None)
  resumed.load_state_dict(saved(optimizer))
  assert steps_of(again, resumed, 13, 13)[13] == pytest.approx(before[8])


@pytest.mark.parametrize('spread', [False, True])
def test_there_are_no_roots_before_the_first_one(spread):
  """Though T0 follows F, and an earlier T0 is over when F falls."""
  weight, optimizer = two_numbers(
    precondition_frequency=100, spread_roots=spread
  )
  steps_of(weight, optimizer, 1, 50)
  rest = steps_of(weight, optimizer, 51, 60, precondition_frequency=20)
  grafted = [0.1, 0.1]
  early = [went for step, went in rest.items() if step < 60]
  assert early == 9 * [pytest.approx(grafted)]
  assert rest[60] != pytest.approx(grafted)


def test_a_state_tells_which_blocks_have_roots():
  weights, optimizer = shampoo_ranks.build()
  shampoo_ranks.train(weights, optimizer, 1, 1)
  assert not any(saved(optimizer)['parameters']['w']['rooted'])
  shampoo_ranks.train(weights, optimizer, 2, 3)
  state = saved(optimizer)
  assert state['parameters']['w']['rooted'] == 6 * [True]
  # One of an earlier version does not: all have, as F says.
  for parameter in state['parameters'].values():
    del parameter['rooted']
  values = shampoo_ranks.trained(weights)
  shampoo_ranks.train(weights, optimizer, 4, 6)
  again, resumed = shampoo_ranks.build()
  resumed.load_state_dict(state)
  shampoo_ranks.restore(again, values)
  shampoo_ranks.train(again, resumed, 4, 6)
  assert_same(snapshot(again, resumed), snapshot(weights, optimizer))


def test_roots_that_are_taken_less_often_than_they_began_are_resumed():
  weights, optimizer = shampoo_ranks.build(
    precondition_frequency=3, start_preconditioning_step=3
  )
  shampoo_ranks.train(weights, optimizer, 1, 4)
  optimizer.param_groups[0]['precondition_frequency'] = 10
  shampoo_ranks.train(weights, optimizer, 5, 6)
  _, resumed = shampoo_ranks.build()
  resumed.load_state_dict(saved(optimizer))
  assert_same(({}, resumed.state_dict()), ({}, optimizer.state_dict()))


def test_groups_of_another_optimizer_start_at_the_first_step():
  weight, optimizer = two_numbers(precondition_frequency=3)
  first = steps_of(weight, optimizer, 1, 5)
  again = DistributedShampoo(
    optimizer.param_groups, lr=1.0, preconditioner_dtype=torch.float64
  )
  assert again.param_groups[0]['lr'] == 0.1
  assert optimizer.param_groups[0]['step'] == 5
  assert steps_of(weight, again, 1, 1)[1] == pytest.approx(first[1])


def test_roots_that_are_never_taken_take_no_memory():
  weight, optimizer = two_numbers(precondition_frequency=10**12)
  assert steps_of(weight, optimizer, 1, 1)[1] == pytest.approx([0.1, 0.1])
  weight, optimizer = two_numbers(
    precondition_frequency=10**12, spread_roots=True
  )
  assert steps_of(weight, optimizer, 1, 1)[1] == pytest.approx([0.1, 0.1])
