"""Checkpoints to average offline, and the averages that were written."""

import json

import torch
from safetensors import safe_open

from lab.offline import writers
from lab.offline.__main__ import main


def states(count, dtype=torch.float32):
  """State dicts of a small network as it might move."""
  generator = torch.Generator().manual_seed(0)
  found = []
  for step in range(1, count + 1):
    state = {
      'layer.weight': torch.randn(7, 5, generator=generator, dtype=dtype),
      'layer.bias': torch.randn(5, generator=generator, dtype=dtype),
      'norm.running_mean': torch.full((3,), float(step), dtype=dtype),
      'norm.num_batches_tracked': torch.tensor(step),
    }
    found.append(state)
  return found


def write(folder, samples):
  """Checkpoints of steps 10, 20, ...; the pattern that finds them."""
  for i, state in enumerate(samples, 1):
    torch.save(state, folder / f'checkpoint_{10 * i}')
  return str(folder / 'checkpoint_*')


def average(pattern, *arguments):
  """Run the command; its status."""
  return main(['average', '--checkpoints', pattern, *map(str, arguments)])


def read(path):
  """The tensors and the recipe of an output."""
  with safe_open(str(path), 'pt') as file:
    tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    return tensors, json.loads(file.metadata()[writers.RECIPE])
