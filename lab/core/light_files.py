"""Find the light checkpoints of a trial, which hold the raw weights alone."""

import os
import re

FOLDER = 'weights'
_NAME = re.compile(r'step_(\d+)\.safetensors')


def steps(directory: str) -> list[int]:
  """Return the steps of a trial's light checkpoints, in ascending order."""
  folder = os.path.join(directory, FOLDER)
  if not os.path.isdir(folder):
    return []
  matches = map(_NAME.fullmatch, os.listdir(folder))
  return sorted(int(match[1]) for match in matches if match)


def path_of(directory: str, step: int | str) -> str:
  """Return the path of a step's light checkpoint; step '*' gives a pattern."""
  return os.path.join(directory, FOLDER, f'step_{step}.safetensors')
