"""Shampoo on several gloo ranks: same weights, shared state, one checkpoint."""

import pathlib

import pytest
import shampoo_ranks
import torch
from gloo import run_on_ranks

# Batches of matrix products are cut differently when a rank has fewer blocks.
TOLERANCE = 1e-12


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """Return the results of both ranks and the state that rank 0 saved."""
  folder = tmp_path_factory.mktemp('two')
  run_on_ranks(2, shampoo_ranks.train_all_ways, str(folder))
  return [load(folder, rank) for rank in range(2)], torch.load(
    folder / 'state.pt', weights_only=True
  )


def load(folder, rank):
  path = pathlib.Path(folder, f'{rank}.pt')
  return torch.load(path, weights_only=True)


def alone(**options):
  weights, optimizer = shampoo_ranks.build(**options)
  shampoo_ranks.train(weights, optimizer, 1, shampoo_ranks.STEPS)
  return shampoo_ranks.trained(weights)


def assert_close(actual, expected, tolerance=TOLERANCE):
  for name, value in expected.items():
    torch.testing.assert_close(
      actual[name], value, rtol=tolerance, atol=tolerance
    )


WAYS = ['float32', 'updates', 'bfloat16', 'spread', 'groups of one']


@pytest.mark.parametrize('way', ['uninterrupted', *WAYS])
def test_ranks_hold_equal_bits(two, way):
  (first, second), _ = two
  assert_close(first[way], second[way], tolerance=0)


@pytest.mark.parametrize('way', ['uninterrupted', 'updates', 'groups of one'])
def test_two_ranks_train_as_one(two, way):
  (first, _), _ = two
  assert_close(first[way], alone())


def test_two_ranks_spread_roots_as_one(two):
  (first, _), _ = two
  assert_close(first['spread'], alone(spread_roots=True))


def test_two_ranks_in_float32_train_as_one_in_float32(two):
  (first, _), _ = two
  # Nine steps of float32 weights around one, roots taken in float64.
  assert_close(first['float32'], alone(dtype=torch.float32), tolerance=1e-5)


def test_bfloat16_rounds_steps_not_weights(two):
  (first, _), _ = two
  # Nine steps of about lr = 0.05 with eight bits each.
  assert_close(first['bfloat16'], alone(), tolerance=9 * 0.05 / 128)
  bits = first['bfloat16']['w']
  assert not torch.equal(bits, bits.bfloat16().double())


def test_each_rank_keeps_about_half_of_the_state(two):
  (first, second), _ = two
  _, optimizer = shampoo_ranks.build()
  whole = optimizer.state_bytes()
  assert first['state_bytes'] + second['state_bytes'] == whole
  assert max(first['state_bytes'], second['state_bytes']) < 0.7 * whole


def test_resumed_ranks_continue_bit_for_bit(two):
  (first, _), _ = two
  assert_close(first['resumed'], first['uninterrupted'], tolerance=0)


def test_one_process_continues_from_two(two):
  (first, _), state = two
  weights, optimizer = shampoo_ranks.build()
  optimizer.load_state_dict(state)
  shampoo_ranks.restore(weights, first['saved_weights'])
  begin, end = shampoo_ranks.SAVED_AT + 1, shampoo_ranks.STEPS
  shampoo_ranks.train(weights, optimizer, begin, end)
  assert_close(
    shampoo_ranks.trained(weights), first['uninterrupted'], TOLERANCE
  )


@pytest.mark.parametrize(
  ('rank', 'moment', 'reason'),
  [
    (0, 'ungathered', 'without gather_state_for_checkpoint'),
    (0, 'stale', 'after further steps'),
    (0, 'stepped after', 'after further steps'),
    (1, 'loaded after', 'a rank other than 0'),
    (1, 'end', 'a rank other than 0'),
  ],
)
def test_incomplete_state_says_so_and_is_refused(two, rank, moment, reason):
  results, _ = two
  _, optimizer = shampoo_ranks.build()
  with pytest.raises(ValueError, match=reason):
    optimizer.load_state_dict(results[rank][moment])


@pytest.mark.parametrize('moment', ['loaded after', 'gathered after'])
def test_a_loaded_state_is_saved_again_before_the_next_step(two, moment):
  (first, _), state = two
  again = first[moment]
  assert again['complete']
  torch.testing.assert_close(
    again['parameters'], state['parameters'], rtol=0, atol=0
  )
  assert again['param_groups'] == state['param_groups']


def test_a_damaged_block_is_refused_by_both_ranks(two):
  (first, second), state = two
  blocks = [
    f'{name} {index}'
    for name, info in state['parameters'].items()
    for index in range(len(info['blocks']))
  ]
  assert list(first['damaged']) == list(second['damaged']) == blocks
  assert first['damaged'] == second['damaged']


def test_what_was_gathered_is_released_at_the_next_step(two):
  results, _ = two
  assert all(result['is_released'] for result in results)


def test_averages_that_are_not_used_any_more_are_gathered(two):
  (first, _), _ = two
  weights, optimizer = shampoo_ranks.build()
  shampoo_ranks.train(weights, optimizer, 1, 3)
  optimizer.param_groups[0].update(momentum=0.0, betas=(0.0, 0.95))
  shampoo_ranks.train(weights, optimizer, 4, 5)
  expected = optimizer.state_dict()['parameters']
  found = first['lowered']['parameters']
  for name, saved in expected.items():
    torch.testing.assert_close(
      found[name]['blocks'], saved['blocks'], rtol=TOLERANCE, atol=TOLERANCE
    )


def test_a_step_that_one_rank_cannot_make_is_made_by_none(two):
  (first, second), _ = two
  of_other = 'Invalid step on another rank, whose message says why.'
  apart = 'Invalid gradients. Must be there for the same parameters on all '
  assert first['refused'] == {
    'sparse': "Invalid sparse gradient of 'w'. Must be dense.",
    'missing': f'{apart}ranks.',
  }
  assert second['refused'] == {'sparse': of_other, 'missing': f'{apart}ranks.'}


def test_rank_0_warns_of_a_state_that_cannot_be_resumed(two):
  (first, second), _ = two
  (warning,) = first['warned']
  assert 'cannot be resumed. Saved without gather_state_for' in warning
  assert second['warned'] == []


def test_a_copy_of_several_ranks_is_refused(two):
  results, _ = two
  for result in results:
    assert 'build another DistributedShampoo and load' in result['copy']


def test_state_gathered_at_the_end_is_complete(two):
  (first, _), _ = two
  assert first['end']['complete']


@pytest.mark.slow
def test_groups_of_ranks_agree_and_the_first_saves(tmp_path):
  run_on_ranks(4, shampoo_ranks.train_in_groups, str(tmp_path))
  results = [load(tmp_path, rank) for rank in range(4)]
  expected = alone()
  for result in results:
    assert_close(result['weights'], results[0]['weights'], tolerance=0)
    assert_close(result['weights'], expected)
  assert [r['complete'] for r in results] == [True, False, False, False]
  sizes = [r['state_bytes'] for r in results]
  assert sizes[:2] == sizes[2:]
