"""Read tuning search spaces: JSON files of points, or of ranges to sample.

A list holds the points themselves, all with the same keys. An object holds a
range per key, `{"min": a, "max": b, "scaling": "linear" or "log"}` or
`{"feasible_points": [...]}`; its points come from torch's scrambled Sobol
sequence (`torch.quasirandom.SobolEngine`), which spreads few points evenly and
gives the same ones for the same seed.
"""

import collections
import json
import keyword
from typing import Any

import torch

from lab.core.errors import InputError
from weightavg.config_fields import is_finite

Point = dict[str, Any]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  counts = collections.Counter(name for name, _ in pairs)
  for name, count in counts.items():
    if count > 1:
      raise ValueError(f'key {name!r} is given twice')
  return dict(pairs)


def check_names(names: Any, where: str) -> None:
  """Raise InputError for a key that a namedtuple does not take."""
  for name in names:
    if (
      not name.isidentifier() or keyword.iskeyword(name) or name[0] == '_'
    ):  # What a namedtuple takes.
      raise InputError(
        f'Invalid key {name!r} in {where}. Must be a Python identifier that '
        'does not start with an underscore.'
      )


def _check_points(space: list[Any], path: str) -> list[Point]:
  for number, point in enumerate(space, 1):
    where = f'point {number} of {path}'
    if not isinstance(point, dict):
      raise InputError(f'Invalid {where}. Must be an object of key: value.')
    check_names(point, where)
    different = sorted(set(point) ^ set(space[0]))
    if different:
      raise InputError(
        f'Invalid {where}: {", ".join(different)} not in all points. All '
        'points must have the same keys.'
      )
  return space


def _is_number(value: Any) -> bool:
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and is_finite(value)
  )


def check_range(name: str, span: Any, path: str) -> None:
  """Raise InputError unless `span` is a range of the key `name` in a file."""
  where = f'range of {name!r} in {path}'
  if isinstance(span, dict) and set(span) == {'feasible_points'}:
    points = span['feasible_points']
    if not isinstance(points, list) or not points:
      raise InputError(
        f'Invalid {where}. feasible_points must be a list of at least one.'
      )
    return
  if not isinstance(span, dict) or set(span) != {'min', 'max', 'scaling'}:
    raise InputError(
      f'Invalid {where}. Must have the keys min, max and scaling, or '
      'feasible_points.'
    )
  if span['scaling'] not in ('linear', 'log'):
    raise InputError(
      f'Invalid {where}: scaling={span["scaling"]!r}. Must be linear or log.'
    )
  low, high = span['min'], span['max']
  if not _is_number(low) or not _is_number(high) or low > high:
    raise InputError(
      f'Invalid {where}: min={low!r}, max={high!r}. Must be numbers with '
      'min <= max.'
    )
  if span['scaling'] == 'log' and low <= 0:
    raise InputError(
      f'Invalid {where}: min={low!r}. Must be positive for scaling log.'
    )


def value_at(span: dict[str, Any], u: float) -> Any:
  """Return the value of a range at the position `u` in [0, 1)."""
  if 'feasible_points' in span:
    points = span['feasible_points']
    return points[min(int(u * len(points)), len(points) - 1)]
  low, high = span['min'], span['max']
  if span['scaling'] == 'log':
    return low * (high / low) ** u
  return low + (high - low) * u


def sample(
  ranges: dict[str, dict[str, Any]], count: int, seed: int
) -> list[Point]:
  """Sample `count` points of a scrambled Sobol sequence over valid `ranges`.

  >>> sample({'power': {'feasible_points': [4]}}, 2, seed=0)
  [{'power': 4}, {'power': 4}]
  """
  # torch takes seeds of 64 bits.
  seed %= 2**63
  engine = torch.quasirandom.SobolEngine(len(ranges), scramble=True, seed=seed)
  rows = engine.draw(count, dtype=torch.float64).tolist()
  return [
    {
      name: value_at(ranges[name], u)
      for name, u in zip(ranges, row, strict=True)
    }
    for row in rows
  ]


def load(path: str, count: int, seed: int) -> list[Point]:
  """Return at most `count` points of the search space in a file.

  Args:
    path: A JSON file.
    count: Number of trials; a list gives as many as it has.
    seed: Non-negative; chooses the points of an object of ranges.

  Raises:
    InputError: the file is missing, is not JSON, or holds no search space.
  """
  try:
    with open(path, encoding='utf-8') as file:
      space = json.load(file, object_pairs_hook=_without_duplicates)
  except OSError as error:
    raise InputError(
      f'Cannot read the tuning search space {path}: {error.strerror}.'
    ) from error
  except (ValueError, RecursionError) as error:
    raise InputError(
      f'The tuning search space {path} is not valid JSON: {str(error)[:200]}.'
    ) from error
  if not isinstance(space, list | dict) or not space:
    raise InputError(
      f'Invalid tuning search space {path}. Must be a list of at least one '
      'point, or an object of ranges.'
    )
  if isinstance(space, list):
    return _check_points(space, path)[:count]
  check_names(space, path)
  for name, span in space.items():
    check_range(name, span, path)
  return sample(space, count, seed)


def as_hyperparameters(point: Point) -> Any:
  """Return the namedtuple `Hyperparameters` that a submission receives."""
  names = list(point)
  return collections.namedtuple('Hyperparameters', names)(**point)
