"""Names of the light checkpoints in a trial's directory: raw weights alone."""

import os
import re

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
