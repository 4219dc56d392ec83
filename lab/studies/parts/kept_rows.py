"""Join rows of new runs with those that a study's file has already.

A clone has the rows of a study but not its runs. Whoever adds a seed or
repeats a workload there makes these runs alone; the rows of the others stay.

Ratios are to a baseline of the same workload and seed. So the unit that is
replaced is a workload and seed with all its rows, and a part of the methods
does not replace the rows of all of them.
"""

import collections
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab.core.errors import InputError
from lab.studies.parts.frame import Row
from lab.studies.parts.training import Result

UNIT = ('workload', 'seed')


class Incomplete(Exception):
  """New rows would lose some of those that a file has."""


def join(
  path: pathlib.Path,
  before: Sequence[Row],
  own: Sequence[Row],
  results: Iterable[Result],
  order: Sequence[str],
) -> list[Row]:
  """Return the rows of a file after new runs.

  Args:
    path: of the file, for messages.
    before: the rows that it has.
    own: the rows of the new runs, sorted by `order`.
    results: of these runs, which may give a file no row.
    order: columns by which the rows are sorted, as far as they have them.

  Raises:
    Incomplete: the rows of a workload and seed would become fewer.
    InputError: rows of one workload would have different targets.
  """
  unit = _shared(UNIT, [*before, *own])
  had = collections.Counter(_key(row, unit) for row in before)
  gets = collections.Counter(_key(row, unit) for row in own)
  made = {*gets, *(_key(result, unit) for result in results)}
  for key, number in had.items():
    if key in made and gets[key] < number:
      place = ', '.join(map(str, key)) or 'all runs'
      raise Incomplete(
        f'Nothing is written: {path} has {number} rows of {place}, and these '
        f'runs give {gets[key]}. Remove it, or name another --output_dir.'
      )
  stay = [row for row in before if _key(row, unit) not in made]
  if not stay:
    return list(own)
  _check_targets(path, stay, own)
  keys = _shared(order, [*stay, *own])
  return sorted([*stay, *own], key=lambda row: _key(row, keys))


def _shared(columns: Iterable[str], rows: Sequence[Row]) -> list[str]:
  """Return the columns that all rows have."""
  return [name for name in columns if all(name in row for row in rows)]


def _key(row: Mapping[str, Any], columns: Iterable[str]) -> tuple[Any, ...]:
  return tuple(row[name] for name in columns)


def _check_targets(
  path: pathlib.Path, stay: Iterable[Row], own: Iterable[Row]
) -> None:
  """Raise InputError if a workload's rows had different targets."""
  targets = {row.get('workload'): row.get('target') for row in own}
  for row in stay:
    name, target = row.get('workload'), row.get('target')
    if target != targets.get(name, target):
      raise InputError(
        f'Invalid target={targets[name]!r} of {name}. Other rows of it in '
        f'{path} have {target!r}; new targets need all seeds.'
      )
