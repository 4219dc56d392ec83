"""Gradients, parameters and hyperparameters that Shampoo refuses."""

import collections
import copy

import pytest
import shampoo_ranks
import torch
import torch.distributed as dist
from shampoo_ranks import assert_same, snapshot
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from weightavg.pytorch.shampoo import (
  DistributedShampoo,
)


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


@pytest.mark.parametrize('shape', [(), (1,), (3, 1)])
def test_a_gradient_whose_square_is_not_finite_is_refused(shape):
  weight = torch.nn.Parameter(torch.ones(shape))
  optimizer = DistributedShampoo([('w', weight)], lr=0.1)
  weight.grad = torch.full(shape, 2e19)
  with pytest.raises(FloatingPointError, match=r"gradient of 'w'\. Must be"):
    optimizer.step()
  assert torch.equal(weight.detach(), torch.ones(shape))


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


def test_names_must_be_unique_and_groups_complete():
  first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
  with pytest.raises(ValueError, match="two are named 'w'"):
    DistributedShampoo([('w', first), ('w', second)], lr=0.1)
  optimizer = DistributedShampoo([('w', first)], lr=0.1)
  with pytest.raises(RuntimeError, match='add_param_group'):
    optimizer.add_param_group({'params': [second]})


@pytest.mark.parametrize(
  ('built', 'name', 'later'),
  [
    ({'momentum': 0.0}, 'momentum=0.9', {'momentum': 0.9}),
    ({'betas': (0.0, 0.9)}, r'betas\[0\]=0.9', {'betas': (0.9, 0.9)}),
    ({'grafting': 'sgd'}, "grafting='adam'", {'grafting': 'adam'}),
  ],
)
def test_a_decay_without_state_is_refused_before_the_step(built, name, later):
  weights, optimizer = shampoo_ranks.build(**built)
  shampoo_ranks.train(weights, optimizer, 1, 2)
  before = [weight.detach().clone() for weight in weights.values()]
  optimizer.param_groups[0].update(later)
  with pytest.raises(ValueError, match=f'Invalid {name}. The optimizer was'):
    shampoo_ranks.train(weights, optimizer, 3, 3)
  assert optimizer.param_groups[0]['step'] == 2
  for weight, old in zip(weights.values(), before, strict=True):
    assert torch.equal(weight, old)


@pytest.mark.parametrize(
  ('name', 'value'),
  [('max_preconditioner_dim', 2), ('diagonal_dim_threshold', 3)],
)
def test_a_change_of_the_blocks_is_refused_before_the_step(name, value):
  weights, optimizer = shampoo_ranks.build(max_preconditioner_dim=64)
  shampoo_ranks.train(weights, optimizer, 0, 2)
  # A saved size that cuts the same blocks is loaded.
  saved = copy.deepcopy(optimizer.state_dict())
  saved['param_groups'][0][name] = 65
  optimizer.load_state_dict(saved)
  shampoo_ranks.train(weights, optimizer, 2, 3)
  before = snapshot(weights, optimizer)
  for group in optimizer.param_groups:
    group[name] = value
  with pytest.raises(ValueError, match=f'Invalid {name}={value}. Must stay 65'):
    optimizer.step()
  optimizer.param_groups[0][name] = 65
  assert_same(snapshot(weights, optimizer), before)
  optimizer.step()


def test_arguments_of_all_groups_are_refused_in_one():
  group = {'params': [torch.nn.Parameter(torch.ones(2))], 'process_group': None}
  with pytest.raises(
    ValueError, match='Invalid process_group of a parameter group'
  ):
    DistributedShampoo([group], lr=0.1)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda p: {p}, 'Invalid params: a set. Must have an order'),
    (lambda p: [{'params': {p}}], 'Invalid params: a set. Must have an order'),
    (lambda p: p, 'Invalid params: a tensor. Must be a list'),
    (lambda p: [{'params': [p]}, p], 'Entry 1 is no parameter group, which'),
    (lambda p: [p, {'params': [p]}], 'Entry 0 is no parameter group, which'),
  ],
)
def test_parameters_without_an_order_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    DistributedShampoo(make(torch.nn.Parameter(torch.ones(2))), lr=0.1)


def test_betas_may_be_any_tuple():
  betas = collections.namedtuple('Betas', 'first second')(0.5, 0.75)
  weight = torch.nn.Parameter(torch.ones(2))
  optimizer = DistributedShampoo([weight], lr=0.1, betas=betas)
  assert optimizer.state_dict()['param_groups'][0]['betas'] == [0.5, 0.75]
