"""Sharded NadamW on several gloo ranks; importable by spawn."""

import pathlib

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import state_dict as dcp_state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
  ColwiseParallel,
  RowwiseParallel,
  parallelize_module,
)

from weightavg.pytorch import NadamW

SETTINGS = {'lr': 0.01, 'betas': (0.9, 0.99), 'eps': 1e-8, 'weight_decay': 0.1}
STEPS, SAVED_AT = 6, 3
# Tensor parallelism needs widths that the ranks share equally.
EVEN_WIDTH = 8


def build_model(width=7):
  """7 rows, which ranks cannot share equally, and layers of a single row."""
  torch.manual_seed(0)
  model = torch.nn.Sequential(
    torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 1)
  )
  return model.double()


def train(model, optimizer, first, last):
  """Steps first..last on the same whole batch on every rank."""
  for step in range(first, last + 1):
    generator = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def whole(model):
  """The parameters as plain tensors, gathered where they are sharded."""
  return {
    name: (p.full_tensor() if hasattr(p, 'full_tensor') else p).detach().clone()
    for name, p in model.named_parameters()
  }


def shard(model, mesh):
  for layer in (model[0], model[2]):
    fully_shard(layer, mesh=mesh)
  fully_shard(model, mesh=mesh)
  return model


def state_dicts(model, optimizer):
  weights, state = dcp_state.get_state_dict(model, optimizer)
  return {'model': weights, 'optimizer': state}


def resume(model, optimizer, folder):
  """Load a checkpoint that any number of ranks wrote."""
  states = state_dicts(model, optimizer)
  dcp.load(states, checkpoint_id=str(folder / 'checkpoint'))
  dcp_state.set_state_dict(
    model,
    optimizer,
    model_state_dict=states['model'],
    optim_state_dict=states['optimizer'],
  )


def save_and_finish(rank, folder):
  """Two ranks: FSDP2 saves in the middle; HSDP and tensor parallelism train."""
  folder = pathlib.Path(folder)
  results = {}

  model = shard(build_model(), init_device_mesh('cpu', (2,)))
  optimizer = NadamW(model.parameters(), **SETTINGS)
  train(model, optimizer, 1, SAVED_AT)
  dcp.save(
    state_dicts(model, optimizer), checkpoint_id=str(folder / 'checkpoint')
  )
  moment = optimizer.state[model[0].weight]['exp_avg']
  results['placements'] = str(moment.placements)
  train(model, optimizer, SAVED_AT + 1, STEPS)
  results['fsdp'] = whole(model)

  for name, shape in {'replicated': (2, 1), 'sharded': (1, 2)}.items():
    mesh = init_device_mesh('cpu', shape, mesh_dim_names=('copy', 'shard'))
    model = shard(build_model(), mesh)
    optimizer = NadamW(model.parameters(), **SETTINGS)
    train(model, optimizer, 1, STEPS)
    results[f'hsdp {name}'] = whole(model)

  model = parallelize_module(
    build_model(EVEN_WIDTH),
    init_device_mesh('cpu', (2,)),
    {'0': ColwiseParallel(), '2': RowwiseParallel()},
  )
  optimizer = NadamW(model.parameters(), **SETTINGS)
  train(model, optimizer, 1, STEPS)
  results['tensor parallel'] = whole(model)

  # A gradient that is not laid out as its parameter is brought there.
  mesh = init_device_mesh('cpu', (2,))
  p = torch.nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)]))
  p.grad = distribute_tensor(torch.arange(8.0).view(4, 2), mesh, [Shard(1)])
  NadamW([p], lr=0.1).step()
  results['other placement'] = {'p': p.full_tensor().detach()}
  torch.save(results, folder / f'{rank}.pt')


def finish(rank, folder):
  """Any other number of ranks: continue from the checkpoint."""
  folder = pathlib.Path(folder)
  mesh = init_device_mesh('cpu', (dist.get_world_size(),))
  model = shard(build_model(), mesh)
  optimizer = NadamW(model.parameters(), **SETTINGS)
  resume(model, optimizer, folder)
  train(model, optimizer, SAVED_AT + 1, STEPS)
  torch.save(whole(model), folder / f'{dist.get_world_size()}.{rank}.pt')
