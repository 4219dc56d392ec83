"""Shampoo's checkpoints and refusals; a refusal changes nothing."""

import copy
import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import shampoo_ranks
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from weightavg.pytorch.shampoo import (
  DistributedShampoo,
  symmetric_pairs,
)


def saved(optimizer):
  """Return the state after a round trip through a file."""
  buffer = io.BytesIO()
  torch.save(optimizer.state_dict(), buffer)
  buffer.seek(0)
  return torch.load(buffer, weights_only=True)


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


def snapshot(weights, optimizer):
  return shampoo_ranks.trained(weights), copy.deepcopy(optimizer.state_dict())


def assert_same(first, second):
  assert str(first[1]['param_groups']) == str(second[1]['param_groups'])
  for name, weight in first[0].items():
    torch.testing.assert_close(weight, second[0][name], rtol=0, atol=0)
  for name, info in first[1]['parameters'].items():
    theirs = second[1]['parameters'][name]['blocks']
    torch.testing.assert_close(info['blocks'], theirs, rtol=0, atol=0)


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


@pytest.mark.parametrize('value', [torch.nan, torch.inf, 1e200])
def test_nonfinite_gradient_is_refused_by_name(value):
  weights, optimizer = shampoo_ranks.build()
  shampoo_ranks.train(weights, optimizer, 1, 3)
  before = snapshot(weights, optimizer)
  weights['b'].grad[2] = value
  with pytest.raises(FloatingPointError, match=r"gradient of 'b'\. Must be"):
    optimizer.step()
  assert_same(snapshot(weights, optimizer), before)


def test_nonfinite_gradient_is_skipped_if_asked(caplog):
  weights, optimizer = shampoo_ranks.build(skip_nonfinite_gradients=True)
  shampoo_ranks.train(weights, optimizer, 1, 3)
  before = snapshot(weights, optimizer)
  weights['conv'].grad.fill_(torch.nan)
  with caplog.at_level('WARNING', logger='absl'):
    optimizer.step()
  assert_same(snapshot(weights, optimizer), before)
  assert optimizer.skipped_steps == 1
  assert 'gradient of conv is not finite' in caplog.text


@pytest.mark.parametrize('spike', [1e25, 1e39])
def test_a_gradient_that_float32_factors_cannot_hold_is_refused(spike):
  weight = torch.nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
  optimizer = DistributedShampoo([('w', weight)], lr=0.1)
  weight.grad = torch.ones_like(weight)
  optimizer.step()
  before = copy.deepcopy(optimizer.state_dict())
  weight.grad[0, 0] = spike
  with pytest.raises(FloatingPointError, match=r"gradient of 'w'\. Must be"):
    optimizer.step()
  assert_same(({}, optimizer.state_dict()), ({}, before))
  # Factors of float64 hold it.
  weights = {'w': torch.nn.Parameter(weight.detach().clone())}
  wide = DistributedShampoo(
    weights.items(), lr=0.1, preconditioner_dtype=torch.float64
  )
  weights['w'].grad = weight.grad
  wide.step()
  assert torch.isfinite(weights['w']).all()


@pytest.mark.parametrize('threads', [1, 2])
def test_a_step_inside_autocast_is_one_outside(threads):
  before = torch.get_num_threads()
  torch.set_num_threads(threads)
  try:
    dtypes = dict.fromkeys(('dtype', 'preconditioner_dtype'), torch.float32)
    runs = [shampoo_ranks.build(**dtypes) for _ in range(2)]
    shampoo_ranks.train(*runs[0], 1, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
      shampoo_ranks.train(*runs[1], 1, 4)
  finally:
    torch.set_num_threads(before)
  assert_same(*(snapshot(*run) for run in runs))


def test_half_precision_norm_does_not_overflow():
  weight = torch.nn.Parameter(torch.zeros(100, dtype=torch.float16))
  optimizer = DistributedShampoo([weight], lr=0.1)
  weight.grad = torch.full_like(weight, 60_000)
  optimizer.step()
  assert torch.isfinite(weight).all()


def test_sparse_and_complex_gradients_are_refused():
  table = torch.nn.Embedding(4, 2, sparse=True)
  optimizer = DistributedShampoo(table.named_parameters(), lr=0.1)
  table(torch.tensor([1])).sum().backward()
  with pytest.raises(ValueError, match="sparse gradient of 'weight'"):
    optimizer.step()
  spectrum = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
  with pytest.raises(ValueError, match='Must be real floating point'):
    DistributedShampoo([spectrum], lr=0.1)


def test_sharded_parameters_are_refused():
  store = dist.HashStore()
  dist.init_process_group('gloo', store=store, rank=0, world_size=1)
  try:
    mesh = init_device_mesh('cpu', (1,))
    weight = distribute_tensor(torch.zeros(4, 2), mesh, [Shard(0)])
    with pytest.raises(ValueError, match="Invalid DTensor 'w'"):
      DistributedShampoo([('w', torch.nn.Parameter(weight))], lr=0.1)
  finally:
    dist.destroy_process_group()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'lr': -1.0}, 'Invalid lr=-1.0'),
    ({'betas': (1.0, 0.9)}, r'Invalid betas\[0\]=1.0. Must be in \[0, 1\)'),
    ({'betas': (0.9, 0.0)}, r'Invalid betas\[1\]=0.0. Must be in \(0, 1\]'),
    ({'betas': 0.9}, 'Invalid betas=0.9'),
    ({'epsilon': 0.0}, r'Invalid epsilon=0.0. Must be in \(0, inf\)'),
    ({'epsilon': float('nan')}, 'Invalid epsilon=nan'),
    ({'momentum': 1.0}, r'Invalid momentum=1.0. Must be in \[0, 1\)'),
    ({'weight_decay': -0.1}, 'Invalid weight_decay=-0.1'),
    ({'max_preconditioner_dim': 0}, 'Invalid max_preconditioner_dim=0'),
    ({'precondition_frequency': 1.5}, 'Invalid precondition_frequency=1.5'),
    ({'start_preconditioning_step': 3}, 'precondition_frequency=100'),
    ({'inv_root_override': -2}, 'Invalid inv_root_override=-2'),
    ({'inv_root_override': [0, 0]}, 'Invalid inv_root_override'),
    ({'exponent_multiplier': 0.0}, 'Invalid exponent_multiplier=0.0'),
    ({'grafting': 'lion'}, "Invalid grafting='lion'"),
    ({'grafting_beta2': 0.0}, 'Invalid grafting_beta2=0.0'),
    ({'use_nadam': 1}, 'Invalid use_nadam=1. Must be a bool'),
    ({'preconditioner_dtype': torch.bfloat16}, 'preconditioner_dtype'),
    ({'communication_dtype': torch.int8}, 'communication_dtype'),
    ({'num_trainers_per_group': 3}, 'Must divide the number of ranks, 1'),
    ({'diagonal_dim_threshold': 0}, 'Invalid diagonal_dim_threshold=0'),
    ({'lr': torch.tensor([0.1, 0.2])}, r'Invalid lr=tensor\(\[0.1'),
    ({'lr': torch.tensor(1j)}, r'Invalid lr=tensor\(0'),
    ({'skip_nonfinite_gradients': 'no'}, "gradients='no'. Must be a bool"),
    ({'communicate_params': 'x'}, "params='x'. Must be a bool"),
    ({'communication_dtype': torch.float8_e4m3fn}, 'dtype of 16 bits or more'),
  ],
  ids=str,
)
def test_hyperparameter_out_of_range_is_named(options, message):
  weight = torch.nn.Parameter(torch.zeros(2))
  with pytest.raises(ValueError, match=message):
    DistributedShampoo([weight], **({'lr': 0.1} | options))


@pytest.mark.parametrize(
  'entry',
  [
    (torch.nn.Parameter(torch.ones(2)), 'w'),
    (1, torch.nn.Parameter(torch.ones(2))),
    ('w', torch.nn.Parameter(torch.ones(2)), 1),
    'w',
  ],
)
def test_an_entry_that_is_no_parameter_is_named(entry):
  good = ('v', torch.nn.Parameter(torch.ones(2)))
  with pytest.raises(
    ValueError, match=r'Invalid params\. Entry 1 of group 0 is no tensor and no'
  ):
    DistributedShampoo([good, entry], lr=0.1)


@pytest.mark.parametrize('params', [[], [{'params': []}], [{'lr': 0.1}]])
def test_empty_parameter_list_is_refused(params):
  with pytest.raises(ValueError, match=r'Invalid params=\[\]'):
    DistributedShampoo(params, lr=0.1)


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


def test_names_must_be_unique_and_groups_complete():
  first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
  with pytest.raises(ValueError, match="two are named 'w'"):
    DistributedShampoo([('w', first), ('w', second)], lr=0.1)
  optimizer = DistributedShampoo([('w', first)], lr=0.1)
  with pytest.raises(RuntimeError, match='add_param_group'):
    optimizer.add_param_group({'params': [second]})


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


@pytest.mark.parametrize(
  ('built', 'name', 'later'),
  [
    ({'momentum': 0.0}, 'momentum', {'momentum': 0.9}),
    ({'betas': (0.0, 0.9)}, r'betas\[0\]', {'betas': (0.9, 0.9)}),
  ],
)
def test_a_decay_without_state_is_refused_before_the_step(built, name, later):
  weights, optimizer = shampoo_ranks.build(**built)
  shampoo_ranks.train(weights, optimizer, 1, 2)
  before = [weight.detach().clone() for weight in weights.values()]
  optimizer.param_groups[0].update(later)
  with pytest.raises(ValueError, match=rf'Invalid {name} > 0\. Must stay 0'):
    shampoo_ranks.train(weights, optimizer, 3, 3)
  assert optimizer.param_groups[0]['step'] == 2
  for weight, old in zip(weights.values(), before, strict=True):
    assert torch.equal(weight, old)


FORK = """
import os
import threading
import torch
from weightavg.pytorch.shampoo import parallel

torch.set_num_threads(2)
both, items = threading.Barrier(2), [(1,), (-2,)]

def meet(number):
  both.wait()
  return abs(number)

assert parallel.run_all(meet, items, torch.device('cpu')) == [1, 2]
child = os.fork()
if not child:
  # Jobs for threads that are gone would wait for ever.
  torch.set_num_threads(2)
  done = parallel.run_all(abs, items, torch.device('cpu')) == [1, 2]
  os._exit(0 if done else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_a_forked_process_has_threads_of_its_own():
  """In a process without JAX, which warns of forks."""
  subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', FORK], check=True, timeout=300
  )


def test_threads_change_nothing():
  results = []
  before = torch.get_num_threads()
  for threads in (1, 3):
    torch.set_num_threads(threads)
    try:
      weights, optimizer = shampoo_ranks.build()
      shampoo_ranks.train(weights, optimizer, 1, 5)
    finally:
      torch.set_num_threads(before)
    results.append(shampoo_ranks.trained(weights))
  for name, weight in results[0].items():
    assert torch.equal(weight, results[1][name])
