"""Distributed Shampoo on several gloo ranks; importable by spawn."""

import copy
import io
import logging
import pathlib
import weakref

import torch
import torch.distributed as dist

from weightavg.pytorch.shampoo import DistributedShampoo

STEPS, SAVED_AT = 9, 5
OPTIONS = {
  'lr': 0.05,
  'betas': (0.9, 0.95),
  'epsilon': 1e-4,
  'momentum': 0.5,
  'weight_decay': 0.01,
  'max_preconditioner_dim': 5,
  'precondition_frequency': 2,
  'use_nadam': True,
  'preconditioner_dtype': torch.float64,
}


def build_weights(dtype=torch.float64):
  """Return a matrix, a bias, a channels-last convolution and a large table."""
  generator = torch.Generator().manual_seed(1)
  shapes = {'w': (7, 12), 'b': (7,), 'conv': (3, 6, 2, 2), 'table': (40, 2)}
  weights = {
    name: torch.randn(shape, generator=generator, dtype=dtype)
    for name, shape in shapes.items()
  }
  weights['conv'] = weights['conv'].to(memory_format=torch.channels_last)
  return {k: torch.nn.Parameter(w) for k, w in weights.items()}


def build(dtype=torch.float64, **options):
  weights = build_weights(dtype)
  options = OPTIONS | {'diagonal_dim_threshold': 40} | options
  return weights, DistributedShampoo(weights.items(), **options)


def train(weights, optimizer, first, last):
  """Make steps first..last with gradients that depend on the step alone."""
  for step in range(first, last + 1):
    generator = torch.Generator().manual_seed(100 + step)
    for name, weight in weights.items():
      gradient = torch.randn(
        weight.shape, generator=generator, dtype=torch.float64
      )
      missing = name == 'b' and step in (2, 4)
      weight.grad = None if missing else gradient.to(weight.dtype)
    optimizer.step()


def trained(weights):
  return {name: weight.detach().clone() for name, weight in weights.items()}


def saved(optimizer):
  """Return the state after a round trip through a file."""
  buffer = io.BytesIO()
  torch.save(optimizer.state_dict(), buffer)
  buffer.seek(0)
  return torch.load(buffer, weights_only=True)


def snapshot(weights, optimizer):
  return trained(weights), copy.deepcopy(optimizer.state_dict())


def assert_same(first, second):
  assert str(first[1]['param_groups']) == str(second[1]['param_groups'])
  for name, weight in first[0].items():
    torch.testing.assert_close(weight, second[0][name], rtol=0, atol=0)
  for name, info in first[1]['parameters'].items():
    theirs = second[1]['parameters'][name]['blocks']
    torch.testing.assert_close(info['blocks'], theirs, rtol=0, atol=0)


def train_all_ways(rank, folder):
  """Run everything that needs two ranks in one start of the processes."""
  folder = pathlib.Path(folder)
  results = {}
  # From here on the ranks have made different numbers of groups.
  dist.new_group([0])

  weights, optimizer = build()
  results['state_bytes'] = optimizer.state_bytes()
  train(weights, optimizer, 1, SAVED_AT)
  results['ungathered'], results['warned'] = state_and_warnings(optimizer)
  optimizer.gather_state_for_checkpoint()
  optimizer.gather_state_for_checkpoint()
  results['saved_weights'] = trained(weights)
  if rank == 0:
    torch.save(optimizer.state_dict(), folder / 'state.pt')
    train(weights, optimizer, SAVED_AT + 1, STEPS)
  else:
    # Rank 1 does not wait for rank 0 to save.
    train(weights, optimizer, SAVED_AT + 1, STEPS)
  results['uninterrupted'] = trained(weights)
  results['stale'] = optimizer.state_dict()
  optimizer.gather_state_for_checkpoint()
  results['end'] = optimizer.state_dict()
  try:
    copy.deepcopy(optimizer)
  except RuntimeError as error:
    results['copy'] = str(error)

  received = [weakref.ref(optimizer._gathering)]
  train(weights, optimizer, STEPS + 1, STEPS + 1)
  results['is_released'] = received[0]() is None

  dist.barrier()
  state = torch.load(folder / 'state.pt', weights_only=True)
  weights, optimizer = build()
  optimizer.gather_state_for_checkpoint()
  optimizer.load_state_dict(state)
  # The caller's tensors are not what is saved again.
  for info in state['parameters'].values():
    for tensors in info['blocks']:
      for tensor in tensors.values():
        tensor.fill_(-1.0)
  results['loaded after'] = saved(optimizer)
  optimizer.gather_state_for_checkpoint()
  results['gathered after'] = saved(optimizer)
  restore(weights, results['saved_weights'])
  train(weights, optimizer, SAVED_AT + 1, SAVED_AT + 1)
  results['stepped after'] = optimizer.state_dict()
  train(weights, optimizer, SAVED_AT + 2, STEPS)
  results['resumed'] = trained(weights)
  results['damaged'] = refused_damage(folder)

  for name, options in {
    'float32': {'dtype': torch.float32},
    'updates': {'communicate_params': False},
    'bfloat16': {'communication_dtype': torch.bfloat16},
    'spread': {'spread_roots': True},
    'groups of one': {'num_trainers_per_group': 1},
  }.items():
    weights, optimizer = build(**options)
    train(weights, optimizer, 1, STEPS)
    results[name] = trained(weights)
  # Averages that are not used any more are still there.
  weights, optimizer = build()
  train(weights, optimizer, 1, 3)
  optimizer.param_groups[0].update(momentum=0.0, betas=(0.0, 0.95))
  train(weights, optimizer, 4, 5)
  optimizer.gather_state_for_checkpoint()
  results['lowered'] = optimizer.state_dict()
  dist.barrier()
  results['refused'] = refused_on_rank_0(rank)
  torch.save(results, folder / f'{rank}.pt')


def state_and_warnings(optimizer):
  records = []
  handler = logging.Handler()
  handler.emit = lambda record: records.append(record.getMessage())
  logger = logging.getLogger('absl')
  logger.addHandler(handler)
  state = optimizer.state_dict()
  logger.removeHandler(handler)
  return state, records


def refused_damage(folder):
  """Load states with one damaged block each; messages by block."""
  messages = {}
  _, optimizer = build()
  whole = torch.load(folder / 'state.pt', weights_only=True)
  for name, info in whole['parameters'].items():
    for index in range(len(info['blocks'])):
      state = torch.load(folder / 'state.pt', weights_only=True)
      state['parameters'][name]['blocks'][index] = {}
      try:
        optimizer.load_state_dict(state)
      except ValueError as error:
        messages[f'{name} {index}'] = str(error)
  return messages


def refused_on_rank_0(rank):
  """Make steps that rank 0 cannot make; messages, and if weights changed."""
  weights, optimizer = build()
  train(weights, optimizer, 1, 2)
  messages = {}

  def sparse(weight):
    weight.grad = torch.zeros_like(weight).to_sparse()

  def missing(weight):
    weight.grad = None

  for spoil in (sparse, missing):
    for weight in weights.values():
      weight.grad = torch.ones_like(weight)
    if rank == 0:
      spoil(weights['w'])
    before = trained(weights)
    try:
      optimizer.step()
    except ValueError as error:
      messages[spoil.__name__] = str(error)
    assert all(torch.equal(before[n], w) for n, w in weights.items())
  return messages


def restore(weights, values):
  with torch.no_grad():
    for name, weight in weights.items():
      weight.copy_(values[name])


def train_in_groups(rank, folder):
  """Train on four ranks in two groups of two."""
  weights, optimizer = build(num_trainers_per_group=2)
  train(weights, optimizer, 1, STEPS)
  optimizer.gather_state_for_checkpoint()
  state = optimizer.state_dict()
  # No rank may exit before everything is sent, as after an evaluation.
  dist.barrier()
  results = {
    'weights': trained(weights),
    'complete': state['complete'],
    'state_bytes': optimizer.state_bytes(),
  }
  torch.save(results, pathlib.Path(folder, f'{rank}.pt'))
