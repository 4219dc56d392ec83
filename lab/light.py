"""Light checkpoints: the weights alone, many of them, for `lab.offline`.

A trial's folder `weights` holds step_<n>.safetensors with the model's state
under clean names: raw weights, whatever average evaluation sees.
"""

import os
import re

from torch import nn

from weightavg.pytorch.models import clean_name, unwrap

FOLDER = 'weights'
_NAME = re.compile(r'step_(\d+)\.safetensors')


def steps(directory: str) -> list[int]:
  """Steps of the light checkpoints of a trial, in order."""
  folder = os.path.join(directory, FOLDER)
  if not os.path.isdir(folder):
    return []
  matches = map(_NAME.fullmatch, os.listdir(folder))
  return sorted(int(match[1]) for match in matches if match)


def path_of(directory: str, step: int | str) -> str:
  """Path of the light checkpoint of a step; '*' makes a pattern."""
  return os.path.join(directory, FOLDER, f'step_{step}.safetensors')


def save(
  model: nn.Module, directory: str, step: int, keep: int | None = None
) -> str:
  """Write the weights; call it on rank 0 only, outside of evaluations.

  Args:
    model: wrapped or not.
    directory: the trial's.
    step: updates made so far.
    keep: how many of the latest stay; None: all.

  Raises:
    InputError: the file cannot be written; nothing is left of it.
  """
  # Needs safetensors, which a plain run does without.
  from lab.offline import writers

  os.makedirs(os.path.join(directory, FOLDER), exist_ok=True)
  state = unwrap(model).state_dict()
  path = path_of(directory, step)
  named = [(clean_name(name), tensor) for name, tensor in state.items()]
  writers.save(path, named, {'step': step})
  if keep is not None:
    # A resumed run may find files of steps that it has yet to make again.
    for old in [s for s in steps(directory) if s <= step][:-keep]:
      os.remove(path_of(directory, old))
  return path
