"""States of Shampoo: resumed bit for bit, copied, or refused."""

import copy
import pickle

import numpy as np
import pytest
import shampoo_ranks
import torch
from shampoo_ranks import assert_same, saved, snapshot

from weightavg.pytorch.shampoo import (
  DistributedShampoo,
  symmetric_pairs,
)


@pytest.mark.parametrize('stop', [1, 3, 4, 7])
@pytest.mark.parametrize(
  'options',
  [
    {},
    {'spread_roots': True},
    {'grafting': 'sgd', 'momentum': 0.0, 'betas': (0.0, 1.0)},
    {'inv_root_override': [0, 2, 3]},
  ],
  ids=str,
)
def test_resumed_training_is_bit_identical(stop, options):
  weights, optimizer = shampoo_ranks.build(**options)
  shampoo_ranks.train(weights, optimizer, 1, stop)
  state, values = saved(optimizer), shampoo_ranks.trained(weights)
  shampoo_ranks.train(weights, optimizer, stop + 1, 9)

  # The learning rate comes from the state, with a warning.
  again, resumed = shampoo_ranks.build(**(options | {'lr': 1.0}))
  with pytest.warns(UserWarning, match=r"not the constructor's \[1.0\]"):
    resumed.load_state_dict(state)
  shampoo_ranks.restore(again, values)
  shampoo_ranks.train(again, resumed, stop + 1, 9)
  for name, weight in weights.items():
    assert torch.equal(weight, again[name])


def test_a_loaded_grafting_method_takes_the_steps():
  weights, optimizer = shampoo_ranks.build(grafting='adam')
  shampoo_ranks.train(weights, optimizer, 1, 3)
  again, resumed = shampoo_ranks.build(grafting='rmsprop')
  resumed.load_state_dict(saved(optimizer))
  shampoo_ranks.restore(again, shampoo_ranks.trained(weights))
  for run in ((weights, optimizer), (again, resumed)):
    shampoo_ranks.train(*run, 4, 6)
  for name, weight in weights.items():
    assert torch.equal(weight, again[name])


@pytest.mark.parametrize(
  'clone',
  [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))],
  ids=['deepcopy', 'pickle'],
)
def test_a_copy_with_its_parameters_continues_bit_for_bit(clone):
  layer = torch.nn.Linear(6, 4)
  optimizer = DistributedShampoo(
    layer.named_parameters(), lr=0.1, precondition_frequency=2
  )
  torch.optim.lr_scheduler.StepLR(optimizer, 1)  # it wraps `step`
  inputs = torch.randn(9, 5, 6)

  def step(layer, optimizer, number):
    optimizer.zero_grad()
    layer(inputs[number]).square().mean().backward()
    optimizer.step()

  for number in range(3):
    step(layer, optimizer, number)
  other_layer, other = clone((layer, optimizer))
  before = other_layer.weight.detach().clone()
  for number in range(3, 6):
    step(layer, optimizer, number)
  assert torch.equal(other_layer.weight, before)
  other.load_state_dict(copy.deepcopy(other.state_dict()))
  for number in range(3, 6):
    step(other_layer, other, number)
  assert torch.equal(other_layer.weight, layer.weight)
  assert_same(
    snapshot(dict(layer.named_parameters()), optimizer),
    snapshot(dict(other_layer.named_parameters()), other),
  )


def test_a_learning_rate_of_numpy_is_saved_as_a_plain_number():
  optimizer = DistributedShampoo(
    [torch.nn.Parameter(torch.ones(2))], lr=np.float64(0.1)
  )
  assert saved(optimizer)['param_groups'][0]['lr'] == 0.1


def test_numbers_of_numpy_are_taken_and_saved_as_plain_ones():
  weight = torch.nn.Parameter(torch.ones(2))
  optimizer = DistributedShampoo(
    [{'params': [weight], 'inv_root_override': [np.int64(0), np.int64(2)]}],
    lr=np.float32(0.5),
    betas=(np.float32(0.5), np.float64(0.25)),
    epsilon=np.float32(0.125),
    precondition_frequency=np.int32(2),
    use_nadam=np.bool_(True),
  )
  (group,) = saved(optimizer)['param_groups']
  assert group['lr'] == 0.5
  assert group['epsilon'] == 0.125
  assert [*group['betas'], *group['inv_root_override']] == [0.5, 0.25, 0, 2]
  assert group['precondition_frequency'] == 2
  assert group['use_nadam'] is True


def test_a_submodule_called_module_keeps_its_name_under_ddp():
  plain = {'module.weight': torch.nn.Parameter(torch.ones(3, 2))}
  plain |= {'head.module.weight': torch.nn.Parameter(torch.ones(2))}
  wrapped = {f'module.{name}': p for name, p in plain.items()}
  states = [
    DistributedShampoo(params.items(), lr=0.1).state_dict()
    for params in (plain, wrapped)
  ]
  for state in states:
    assert list(state['parameters']) == list(plain)


def test_state_holds_plain_data_under_clean_names():
  weight = torch.nn.Parameter(torch.randn(3, 2))
  optimizer = DistributedShampoo(
    [('module._orig_mod.layer.weight', weight)], lr=torch.tensor(0.1)
  )
  state = optimizer.state_dict()
  assert list(state['parameters']) == ['layer.weight']

  def check(value):
    if isinstance(value, dict):
      for key, item in value.items():
        assert isinstance(key, str)
        check(item)
    elif isinstance(value, list):
      for item in value:
        check(item)
    else:
      plain = (torch.Tensor, int, float, str, bool, type(None))
      assert isinstance(value, plain), value

  check(state)


def broken_states():
  def other_model(state):
    state['parameters']['x'] = state['parameters'].pop('w')
    state['param_groups'][0]['params'][0] = 'x'

  def other_shape(state):
    state['parameters']['w']['shape'] = [3, 3]

  def other_block(state):
    block = state['parameters']['w']['blocks'][1]
    block['momentum'] = block['momentum'][:1]

  def missing_moment(state):
    del state['parameters']['b']['blocks'][0]['velocity']

  def bad_value(state):
    state['param_groups'][0]['betas'] = [2.0, 0.9]

  def of_adam(state):
    state.clear()
    state.update({'state': {}, 'param_groups': []})

  def without(*keys):
    def change(state):
      for key in keys[:-1]:
        state = state[key]
      del state[keys[-1]]

    return change

  def bad_count(state):
    state['kept_roots'] = -1

  def bad_step(state):
    state['param_groups'][0]['step'] = 'x'

  def more_groups(state):
    state['param_groups'].append({})

  def no_group(state):
    state['param_groups'][0] = 3

  def no_parameter(state):
    state['parameters']['b'] = 5

  def no_block(state):
    state['parameters']['b']['blocks'][0] = 5

  def no_tensor(state):
    state['parameters']['b']['blocks'][0]['velocity'] = 5

  def bad_betas(state):
    state['param_groups'][0]['betas'] = 3

  return [
    (without('retried_roots'), 'Invalid state: retried_roots=None. Must be in'),
    (without('complete'), 'Invalid state: complete=None. Must be bool'),
    (without('parameters', 'w'), "Invalid state of 'w': it is incomplete"),
    (without('parameters', 'b', 'blocks'), "Invalid state of 'b': it is inc"),
    (without('param_groups', 0, 'betas'), "a group lacks 'betas'"),
    (bad_count, 'Invalid state: kept_roots=-1. Must be int'),
    (bad_step, "Invalid step='x'. Must be an integer >= 0"),
    (bad_betas, 'Invalid betas=3. Must be two numbers'),
    (more_groups, 'Invalid state: 2 parameter groups. Must be 1.'),
    (no_group, 'Invalid state: a group is a int. Must be a dict.'),
    (no_parameter, "state: the state of 'b' is a int. Must be a dict."),
    (no_block, "Invalid state: block 0 of 'b' is a int. Must be a dict."),
    (no_tensor, "state of 'b', block 0: .*'velocity': 'int'"),
    (other_model, r"other parameters. Missing: \['w'\]; unknown: \['x'\]"),
    (other_shape, r"state of 'w': shape \[3, 3\]"),
    (other_block, "state of 'w', block 1"),
    (missing_moment, "state of 'b', block 0"),
    (bad_value, r'Invalid betas\[0\]=2.0'),
    (of_adam, 'format is None'),
  ]


@pytest.mark.parametrize(
  ('change', 'message'),
  broken_states(),
  ids=lambda p: getattr(p, '__name__', ''),
)
def test_state_that_does_not_fit_is_refused_and_changes_nothing(
  change, message
):
  weights, optimizer = shampoo_ranks.build()
  shampoo_ranks.train(weights, optimizer, 1, 3)
  before = snapshot(weights, optimizer)
  state = copy.deepcopy(before[1])
  shampoo_ranks.train(weights, optimizer, 4, 4)
  before = snapshot(weights, optimizer)
  change(state)
  with pytest.raises(ValueError, match=message):
    optimizer.load_state_dict(state)
  assert_same(snapshot(weights, optimizer), before)


def test_a_state_from_before_a_scheduler_loads_beside_it():
  _, optimizer = shampoo_ranks.build()
  state = saved(optimizer)
  torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
  optimizer.load_state_dict(state)
  (group,) = optimizer.param_groups
  assert group['lr'] == group['initial_lr'] == shampoo_ranks.OPTIONS['lr']


def test_counts_are_resumed():
  _, optimizer = shampoo_ranks.build()
  state = saved(optimizer)
  state.update(retried_roots=1, kept_roots=2, skipped_steps=3)
  optimizer.load_state_dict(state)
  assert optimizer.retried_roots == 1
  assert optimizer.kept_roots == 2
  assert optimizer.skipped_steps == 3


def test_hooks_of_states_are_called_as_torch_calls_them():
  _, optimizer = shampoo_ranks.build()
  seen = []
  optimizer.register_state_dict_pre_hook(lambda o: seen.append('save'))
  optimizer.register_state_dict_post_hook(lambda o, s: s | {'mine': 1})
  optimizer.register_load_state_dict_pre_hook(
    lambda o, s: s | {'skipped_steps': s['mine']}
  )
  optimizer.register_load_state_dict_post_hook(
    lambda o: seen.append(o.skipped_steps)
  )
  optimizer.load_state_dict(optimizer.state_dict())
  assert seen == ['save', 1]


def test_a_hook_may_change_its_state_and_not_the_callers():
  _, optimizer = shampoo_ranks.build()
  optimizer.register_load_state_dict_pre_hook(
    lambda o, s: s.update(skipped_steps=2)
  )
  state = optimizer.state_dict()
  optimizer.load_state_dict(state)
  assert optimizer.skipped_steps == 2
  assert state['skipped_steps'] == 0


def test_half_precision_norm_does_not_overflow():
  weight = torch.nn.Parameter(torch.zeros(100, dtype=torch.float16))
  optimizer = DistributedShampoo([weight], lr=0.1)
  weight.grad = torch.full_like(weight, 60_000)
  optimizer.step()
  assert torch.isfinite(weight).all()


def test_tied_parameters_are_stepped_once():
  layer = torch.nn.Linear(3, 3)
  model = torch.nn.ModuleDict({'a': layer, 'b': layer})
  named = list(model.named_parameters(remove_duplicate=False))
  assert len(named) == 4
  optimizer = DistributedShampoo(named, lr=0.1)
  before = layer.bias.detach().clone()
  layer(torch.ones(1, 3)).sum().backward()
  optimizer.step()
  # The first step of Adam, once: lr times the sign of the gradient.
  torch.testing.assert_close(layer.bias.detach(), before - 0.1)
  assert list(optimizer.state_dict()['parameters']) == ['a.weight', 'a.bias']


def test_groups_have_their_own_hyperparameters():
  first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
  optimizer = DistributedShampoo(
    [{'params': [first], 'lr': 0.5}, {'params': [second]}], lr=0.25
  )
  first.grad, second.grad = torch.ones(2), torch.ones(2)
  optimizer.step()
  torch.testing.assert_close(first.detach(), torch.full((2,), 0.5))
  torch.testing.assert_close(second.detach(), torch.full((2,), 0.75))


def test_empty_parameter_is_left_alone():
  empty = torch.nn.Parameter(torch.zeros(0, 3))
  weight = torch.nn.Parameter(torch.zeros(2))
  optimizer = DistributedShampoo([empty, weight], lr=0.1)
  empty.grad, weight.grad = torch.zeros(0, 3), torch.ones(2)
  optimizer.step()
  assert weight.ne(0).all()


def test_state_of_a_matrix_is_both_moments_and_packed_factors():
  weight = torch.nn.Parameter(torch.zeros(6, 4))
  optimizer = DistributedShampoo([weight], lr=0.1, max_preconditioner_dim=6)
  expected = 2 * 6 * 4 + 6 * 7 + 4 * 5
  assert optimizer.state_bytes() == 4 * expected


def test_roots_survive_storage_that_is_swapped():
  """An averager may exchange p.data between steps."""
  weights, optimizer = shampoo_ranks.build()
  twins, twin_optimizer = shampoo_ranks.build()
  for step in range(1, 5):
    shampoo_ranks.train(weights, optimizer, step, step)
    shampoo_ranks.train(twins, twin_optimizer, step, step)
    for weight in weights.values():
      weight.data = weight.data.clone()
  for name, weight in weights.items():
    assert torch.equal(weight, twins[name])


def test_new_pair_is_zero_factor_and_identity_root():
  pair = symmetric_pairs.new_pair(2, 3, torch.float32, torch.device('cpu'))
  assert torch.equal(
    symmetric_pairs.factor_half(pair).unpack(), torch.zeros(2, 3, 3)
  )
  identity = torch.eye(3).repeat(2, 1, 1)
  assert torch.equal(symmetric_pairs.root_half(pair).unpack(), identity)


def test_a_schedule_of_beta2_does_not_fill_the_memory():
  weights, optimizer = shampoo_ranks.build()
  for step in range(1, 200):
    optimizer.param_groups[0]['betas'] = (0.9, 1 - 1 / (step + 1))
    shampoo_ranks.train(weights, optimizer, step, step)
  assert len(symmetric_pairs._weights) <= 100
