"""Typed, ranged configuration fields: one declaration, one check, one message.

A knob is a dataclass field that carries its type, its allowed values and a
line of help. `check_knobs` is called from `__post_init__`, `read_knobs` builds
a configuration from what AlgoPerf hands over, a namedtuple made from JSON.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

REQUIRED = dataclasses.MISSING
Config = TypeVar('Config')


def knob(
  default: Any, kind: type, allowed: Any, help: str, stands_for: Any = None
) -> Any:
  """Declare a field of a configuration.

  Args:
    default: value where a point does not give one; REQUIRED if it must.
    kind: float (accepts integers), int, bool or str.
    allowed: an interval such as '(0, 1]', a tuple of values, or None for
      text that its owner checks.
    help: one line for the table of knobs.
    stands_for: what null means, where it is not nothing.
  """
  metadata = {
    'kind': kind,
    'allowed': allowed,
    'help': help,
    'stands_for': stands_for,
  }
  return dataclasses.field(default=default, metadata=metadata)


def allowed_text(field: dataclasses.Field) -> str:
  """What a knob may be, as the end of a sentence: 'in (0, 1]'."""
  allowed = field.metadata['allowed']
  if allowed is None:
    text = 'a string'
  elif isinstance(allowed, str):
    kind = 'an integer in ' if field.metadata['kind'] is int else 'in '
    text = kind + allowed
  elif field.metadata['kind'] is bool:
    text = 'true or false'
  else:
    text = 'one of ' + ', '.join(map(str, allowed))
  return text + (' or null' if field.default is None else '')


def in_interval(value: float, interval: str) -> bool:
  """Whether value lies in an interval written as '[0, 1)'; NaN never does."""
  low, high = (float(end) for end in interval[1:-1].split(','))
  above = value >= low if interval[0] == '[' else value > low
  below = value <= high if interval[-1] == ']' else value < high
  return above and below


def _is_allowed(field: dataclasses.Field, value: Any) -> bool:
  kind, allowed = field.metadata['kind'], field.metadata['allowed']
  if value is None:
    return field.default is None
  if kind is bool or isinstance(value, bool):
    return kind is bool and isinstance(value, bool)
  types = (int, float) if kind is float else kind
  if not isinstance(value, types):
    return False
  if allowed is None:
    return True
  if isinstance(allowed, str):
    return math.isfinite(value) and in_interval(value, allowed)
  return value in allowed


def check_knobs(config: Any) -> None:
  """Raise ValueError for the first field of wrong type or out of range."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if not _is_allowed(field, value):
      raise ValueError(
        f'Invalid {field.name}={value!r}. Must be {allowed_text(field)}.'
      )


def read_knobs(config_class: type[Config], point: Mapping[str, Any]) -> Config:
  """Build a configuration from a point whose keys are fields of it.

  Raises:
    ValueError: naming the first field that is missing, ill-typed or out of
      range.
  """
  fields = {f.name: f for f in dataclasses.fields(config_class)}  # type: ignore[arg-type]
  for name, field in fields.items():
    if field.default is REQUIRED and name not in point:
      raise ValueError(
        f'Missing hyperparameter {name}. Must be {allowed_text(field)}.'
      )
  return config_class(**point)
