"""Encode the point of a run, to refuse the state of another one.

A run in JAX takes the numbers of its own point at each step. So the state that
another point has left would be continued with other numbers than it was made
with, without a word.
"""

import json
from typing import Any

import numpy as np

from weightavg.config_fields import values_by_key
from weightavg.submission_config import SubmissionConfig

# Where things are kept, and how often, not what they are.
_MAY_CHANGE = (
  'averaging_placement',
  'averaging_checkpoints',
  'averaging_swap',
  'averaging_refresh_every',
)


def encoded(config: SubmissionConfig, optimizer: str) -> np.ndarray:
  """Return the values of a point by key, as bytes of JSON; dtype=uint8.

  Args:
    config: the point.
    optimizer: name of the optimizer.
  """
  averaging = config.averaging
  values = values_by_key(
    config.optimizer,
    config.schedule,
    config.regularization,
    averaging,
    averaging.scheme,
  )
  values = {k: v for k, v in values.items() if k not in _MAY_CHANGE}
  values |= {
    'optimizer': optimizer,
    'averaging_scheme': averaging.scheme.name,
    'averaging_interpolation': averaging.interpolation,
    'averaging_batch_norm': averaging.batch_norm,
  }
  text = json.dumps(values, sort_keys=True, default=repr)
  return np.frombuffer(text.encode(), np.uint8)


def check(saved: Any, own: Any) -> None:
  """Raise ValueError for the first key with another value.

  Args:
    saved: as `encoded` has given it for the run that was saved.
    own: of this run.
  """
  mine = json.loads(np.asarray(own).tobytes())
  try:
    theirs = json.loads(np.asarray(saved).tobytes())
    found = {key: theirs.get(key) for key in mine}
  except (ValueError, AttributeError):
    raise ValueError('Invalid checkpoint: its point cannot be read.') from None
  for key, value in mine.items():
    if found[key] != value:
      raise ValueError(
        f'Invalid checkpoint: saved with {key}={found[key]!r}, this submission '
        f'has {key}={value!r}.'
      )
