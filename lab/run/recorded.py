"""Read what an experiment has recorded about itself.

Each start of a trial writes the next meta_data_<n>.json. A killed process or a
bad disk may have damaged any of them.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

from lab.core import checkpoint_files, logs

_META_DATA = re.compile(r'meta_data_(\d+)\.json')


def trials_with_checkpoints(path: str) -> list[str]:
  """Return the trials of an experiment that have a checkpoint."""
  if not os.path.isdir(path):
    return []
  trials = [os.path.join(path, name) for name in sorted(os.listdir(path))]
  return [trial for trial in trials if checkpoint_files.steps(trial)]


def last_number(trial: str) -> int:
  """Return the number of a trial's last meta_data_<n>.json; -1 if none."""
  return max(_numbers(trial), default=-1)


def seed(trial: str) -> int | None:
  """Return a trial's seed; None where no meta_data_<n>.json has it."""
  for content in _meta_data(trial):
    found = content.get('rng_seed')
    if isinstance(found, int) and found >= 0:
      return found
  return None


def _numbers(trial: str) -> list[int]:
  names = os.listdir(trial) if os.path.isdir(trial) else []
  return [int(m[1]) for m in map(_META_DATA.fullmatch, names) if m]


def _meta_data(trial: str) -> Iterator[dict[str, Any]]:
  """Yield the content of each meta_data_<n>.json, the last one first."""
  for number in sorted(_numbers(trial), reverse=True):
    yield logs.read_object(os.path.join(trial, f'meta_data_{number}.json'))
