"""Averages and optimizers on three ranks, one of which meets a NaN.

Each scenario returns what its rank holds at the end; importable by spawn.
"""

import math
import pathlib

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor.debug import CommDebugMode

from weightavg import Auto, Ema, Lawa, Polynomial
from weightavg.pytorch import Averager, NadamW
from weightavg.pytorch.shampoo import DistributedShampoo

STEPS, BAD = 6, 3
SCHEMES = {
  'lawa': Lawa(window=3),
  'ema': Ema(0.5),
  'polynomial': Polynomial(2.0),
  'auto': Auto('ema 0.5, lawa 0.5'),
}
PLACEMENTS = ('device', 'cpu', 'sharded')


def make():
  torch.manual_seed(0)
  return nn.Linear(4, 3)


def held(model, averager):
  """Weights and counts, the average's and the model's own."""
  raw = [p.detach().clone() for p in model.parameters()]
  with averager.evaluating():
    average = [p.detach().clone() for p in model.parameters()]
  return {
    'raw': raw,
    'average': average,
    'samples': averager.samples,
    'skipped': averager.skipped,
  }


def follow(model, averager, meets_nan):
  """Weights that are the number of the step, except for one NaN."""
  for step in range(1, STEPS + 1):
    with torch.no_grad():
      for p in model.parameters():
        p.fill_(float(step))
      if step == BAD and meets_nan:
        model.weight[0, 0] = math.nan
    averager.update()


def every_scheme(rank):
  found = {}
  for name, scheme in SCHEMES.items():
    for placement in PLACEMENTS:
      model = make()
      averager = Averager(
        model,
        scheme,
        every=1,
        total_steps=STEPS,
        placement=placement,
        collective=True,
      )
      if name == 'auto':
        averager.select(1)
      follow(model, averager, rank == 1)
      found[f'{name} {placement}'] = held(model, averager)
  return found


def in_a_group(rank):
  """Ranks 1 and 2 average together; rank 0 has no averager."""
  group = dist.new_group([1, 2])
  if rank == 0:
    return {}
  found = {}
  for placement in PLACEMENTS:
    model = nn.Sequential(make(), nn.BatchNorm1d(3))
    averager = Averager(
      model, Ema(0.5), every=1, placement=placement, collective=group
    )
    model[1].running_mean.fill_(float(rank))
    follow(model[0], averager, rank == 2)
    found[placement] = held(model, averager) | {
      'mean': averager.averaged_state_dict()['1.running_mean'],
      # Rank 1, the first of the group, saves.
      'complete': averager.state_dict()['complete'],
    }
    # No rank may end before its share is sent.
    dist.barrier(group)
  return found


def on_one_rank(rank):
  """Rank 0 alone has an averager; without `collective` it waits for nobody."""
  if rank:
    return {}
  model = make()
  averager = Averager(model, Ema(0.5), every=1)
  follow(model, averager, True)
  return held(model, averager)


def at_the_average(rank):
  """Primal averaging: the gradients of one step are not finite on rank 1."""
  found = {}
  for name, optimizer_class in {
    'nadamw': NadamW,
    'sgd': torch.optim.SGD,
  }.items():
    model = make()
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    averager = Averager(
      model, Ema(0.5), every=1, interpolation=0.5, collective=True
    )
    for step in range(1, STEPS + 1):
      for p in model.parameters():
        p.grad = torch.full_like(p, float(step))
      if step == BAD and rank == 1:
        model.weight.grad[0, 0] = math.nan
      averager.before_step(optimizer)
      optimizer.step()
      averager.update()
      if step in (BAD - 1, BAD):
        when = 'after' if step == BAD else 'before'
        found[f'{name} {when}'] = held(model, averager)
    found[name] = held(model, averager)
  return found


def counted(rank):
  """All-reduces of six updates, of which three are sampled."""
  found = {}
  for name, options in {
    'alone': {},
    'collective': {'collective': True},
  }.items():
    model = make()
    averager = Averager(model, Ema(0.5), every=2, **options)
    with CommDebugMode() as comm:
      for _ in range(STEPS):
        averager.update()
    found[name] = comm.get_total_counts()
  return found


def shampoo(rank):
  """One step's gradient is not finite on rank 1, all gradients are else."""
  found = {}
  for ranks_per_group in (-1, 1):
    model = make()
    optimizer = DistributedShampoo(
      model.named_parameters(),
      lr=0.1,
      precondition_frequency=2,
      num_trainers_per_group=ranks_per_group,
      skip_nonfinite_gradients=True,
    )
    for step in range(1, STEPS + 1):
      for p in model.parameters():
        p.grad = torch.full_like(p, float(step))
      if step == BAD and rank == 1:
        model.weight.grad[0, 0] = math.nan
      optimizer.step()
    found[str(ranks_per_group)] = {
      'weights': [p.detach().clone() for p in model.parameters()],
      'skipped': optimizer.skipped_steps,
    }
    optimizer.skip_nonfinite_gradients = False
    if rank == 1:
      model.weight.grad[0, 0] = math.nan
    try:
      optimizer.step()
      found[str(ranks_per_group)]['error'] = ''
    except FloatingPointError as error:
      found[str(ranks_per_group)]['error'] = str(error)
  return found


# torch names a group after the number of groups that its rank knows: once some
# ranks have made one, no other may be made by more than these.
SCENARIOS = (
  every_scheme,
  on_one_rank,
  at_the_average,
  counted,
  shampoo,
  in_a_group,
)


def run_scenarios(rank, folder):
  results = {}
  for scenario in SCENARIOS:
    results[scenario.__name__] = scenario(rank)
    dist.barrier()
  torch.save(results, pathlib.Path(folder, f'{rank}.pt'))
