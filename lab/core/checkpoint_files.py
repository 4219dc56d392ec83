"""Find the checkpoints of a trial by the names that AlgoPerf gives them."""

import os
import re

_NAME = re.compile(r'checkpoint_(\d+)')


def steps(directory: str) -> list[int]:
  """Return the steps of the checkpoints in a directory, in ascending order."""
  if not os.path.isdir(directory):
    return []
  matches = map(_NAME.fullmatch, os.listdir(directory))
  return sorted(int(match[1]) for match in matches if match)


def path_of(directory: str, step: int) -> str:
  """Return the path of the checkpoint of a step."""
  return os.path.join(directory, f'checkpoint_{step}')


def latest(directory: str) -> str | None:
  """Return the path of the last checkpoint in a directory, or None."""
  found = steps(directory)
  return path_of(directory, found[-1]) if found else None


def step_of(path: str) -> int:
  """Return the step of a checkpoint.

  >>> step_of('trial_1/checkpoint_20')
  20
  """
  match = _NAME.fullmatch(os.path.basename(path))
  assert match is not None, path
  return int(match[1])
