"""Typed, ranged configuration fields: one declaration, one check, one message.

A field of a configuration carries its type, its allowed values and a line of
help. `check_fields` is called from `__post_init__`; `read_fields` builds a
configuration from what AlgoPerf hands over, a namedtuple made from JSON. A
field may have another name in a point of a search space, its key: `decay` of
an EMA is `ema_decay` there.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

REQUIRED = dataclasses.MISSING
Config = TypeVar('Config')


def config_field(
  default: Any,
  kind: Any,
  allowed: Any,
  help: str,
  stands_for: Any = None,
  key: str | None = None,
) -> Any:
  """Declare a field of a configuration.

  Args:
    default: value where a point does not give one; REQUIRED if it must.
    kind: float (accepts integers), int, bool, str or a tuple of types.
    allowed: an interval such as '(0, 1]', a tuple of values, or None for
      values that their owner checks.
    help: one line for the table of hyperparameters.
    stands_for: meaning of null, where null has one.
    key: name in a point; by default that of the field.
  """
  metadata = {
    'kind': kind,
    'allowed': allowed,
    'help': help,
    'stands_for': stands_for,
    'key': key,
  }
  return dataclasses.field(default=default, metadata=metadata)


def fields_by_key(config_class: Any) -> dict[str, dataclasses.Field]:
  """Fields of a configuration by their names in a point."""
  return {
    field.metadata['key'] or field.name: field
    for field in dataclasses.fields(config_class)
    if 'kind' in field.metadata
  }


def values_by_key(*configs: Any) -> dict[str, Any]:
  """Values of configurations by their names in a point."""
  return {
    key: getattr(config, field.name)
    for config in configs
    for key, field in fields_by_key(config).items()
  }


def allowed_text(field: dataclasses.Field) -> str:
  """Allowed values of a field, as the end of a sentence: 'in (0, 1]'."""
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


def plain(value: Any) -> Any:
  """Return NumPy's scalars as Python's, any other value as it is.

  `torch.load(weights_only=True)` refuses a checkpoint that holds NumPy's.
  """
  return value.item() if isinstance(value, np.generic) else value


def in_interval(value: float, interval: str) -> bool:
  """Test value against an interval written as '[0, 1)'; NaN is in none."""
  low, high = (float(end) for end in interval[1:-1].split(','))
  above = value >= low if interval[0] == '[' else value > low
  below = value <= high if interval[-1] == ']' else value < high
  return above and below


def is_finite(value: float) -> bool:
  """True for a number that a float can hold."""
  try:
    return math.isfinite(value)
  except OverflowError:  # an integer beyond all floats
    return False


def is_integer(value: Any) -> bool:
  """True for an integer of Python or NumPy that is no bool."""
  value = plain(value)
  return isinstance(value, int) and not isinstance(value, bool)


def check_steps(name: str, value: Any) -> None:
  """Raise ValueError for what is no positive number of steps."""
  if not is_integer(value) or value < 1:
    raise ValueError(
      f'Invalid {name}={value!r}. Must be an integer in [1, inf).'
    )


def _is_allowed(field: dataclasses.Field, value: Any) -> bool:
  kind, allowed = field.metadata['kind'], field.metadata['allowed']
  value = plain(value)
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
    return is_finite(value) and in_interval(value, allowed)
  return value in allowed


def check_value(key: str, field: dataclasses.Field, value: Any) -> None:
  """Raise ValueError for a value of wrong type or out of range."""
  if not _is_allowed(field, value):
    raise ValueError(f'Invalid {key}={value!r}. Must be {allowed_text(field)}.')


def check_fields(config: Any) -> None:
  """Raise ValueError for the first field of wrong type or out of range.

  NumPy's scalars become Python's, and integers floats where those are meant:
  equal values have equal texts.
  """
  for field in dataclasses.fields(config):
    if 'kind' in field.metadata:
      value = getattr(config, field.name)
      check_value(field.name, field, value)
      value = plain(value)
      if field.metadata['kind'] is float and isinstance(value, int):
        value = float(value)
      object.__setattr__(config, field.name, value)


def read_fields(config_class: type[Config], point: Mapping[str, Any]) -> Config:
  """Build a configuration from a point whose keys are those of its fields.

  Raises:
    ValueError: naming the first key that is missing, ill-typed or out of
      range.
  """
  fields = fields_by_key(config_class)
  for key, field in fields.items():
    if key in point:
      check_value(key, field, point[key])
    elif field.default is REQUIRED:
      raise ValueError(
        f'Missing hyperparameter {key}. Must be {allowed_text(field)}.'
      )
  return config_class(
    **{fields[key].name: value for key, value in point.items()}
  )
