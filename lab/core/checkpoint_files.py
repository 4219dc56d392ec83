"""Names of a trial's checkpoints, as the benchmark gives them."""

import os
import re

_NAME = re.compile(r'checkpoint_(\d+)')


def steps(directory: str) -> list[int]:
  """Steps of the checkpoints in a directory, in order."""
  if not os.path.isdir(directory):
    return []
  matches = map(_NAME.fullmatch, os.listdir(directory))
  return sorted(int(match[1]) for match in matches if match)


def path_of(directory: str, step: int) -> str:
  """Path of the checkpoint of a step."""
  return os.path.join(directory, f'checkpoint_{step}')


def latest(directory: str) -> str | None:
  """Path of the last checkpoint in a directory, or None."""
  found = steps(directory)
  return path_of(directory, found[-1]) if found else None
