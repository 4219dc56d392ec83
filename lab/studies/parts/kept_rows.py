"""Join rows of new runs with those that a study's file has already.

A clone has the rows of a study but not its runs. Most studies have units of
rows, each of which follows from its own runs: one of a workload and a seed, or
one of a method. Adding a seed or a method then takes its runs alone, and the
rows of other units stay. Without units new rows replace all rows. No row is
lost in either case: rows are told apart by the columns that say what was
measured.
"""

import collections
import functools
import operator
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lab.core import logs
from lab.core.errors import InputError
from lab.studies.parts.frame import Row
from lab.studies.parts.training import Result

# Columns that tell units apart; along the last one a study grows.
BY_SEED = ('workload', 'seed')
BY_METHOD = ('method',)
# Columns that say what was measured; all others have what was found.
IDENTITY = (
  'workload',
  'seed',
  'batch_norm',
  'budget',
  'candidate',
  'epochs',
  'every',
  'fraction',
  'framework',
  'horizon',
  'learning_rate_factor',
  'length',
  'method',
  'optimizer',
  'planned',
  'point',
  'rate',
  'schedule',
  'scheme',
  'statistics',
  'submission',
  'trial',
  'tuned_for',
)


class Incomplete(Exception):
  """New rows lack some that a file must have."""


def read(path: pathlib.Path, content: str = 'rows') -> list[Row] | None:
  """Return the rows of a file; None if there is no such file.

  Args:
    path: of the file.
    content: what a message calls them.

  Raises:
    InputError: the file is damaged.
  """
  rows = logs.read_json(str(path))
  if rows is None and not path.exists():
    return None
  if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
    raise InputError(f'Cannot read the {content} {path}. The file is damaged.')
  return rows


def replace(
  path: pathlib.Path, before: Sequence[Row], own: Sequence[Row]
) -> list[Row]:
  """Return new rows, which take the place of all rows of a file.

  Args:
    path: of the file, for messages.
    before: the rows that it has.
    own: the rows of the new runs.

  Raises:
    Incomplete: the file has rows that would be lost.
  """
  _check_none_is_lost(path, before, own)
  return list(own)


def join(
  path: pathlib.Path,
  before: Sequence[Row],
  own: Sequence[Row],
  results: Iterable[Result],
  unit: Sequence[str],
  place: Callable[[Row], Any],
) -> list[Row]:
  """Return new rows, and a file's rows of other units.

  Args:
    path: of the file, for messages.
    before: the rows that it has, each with the columns of a unit.
    own: the rows of the new runs, sorted by `place`.
    results: of these runs. Where they have the columns of a unit, it is made
      even if a file has no row of it.
    unit: columns that tell units apart.
    place: key by which the rows of a file are sorted.

  Raises:
    Incomplete: the file has rows of these units that would be lost; or a new
      unit lacks what all other ones have that differ in the last column only.
    InputError: rows of one workload would have different targets.
  """
  made = {_key(row, unit) for row in own}
  made |= {_key(r, unit) for r in results if {*unit} <= {*r}}
  stay = [row for row in before if _key(row, unit) not in made]
  replaced = [row for row in before if _key(row, unit) in made]
  _check_none_is_lost(path, replaced, own)
  _check_like_the_others(path, stay, own, unit)
  _check_targets(path, stay, own)
  return sorted([*stay, *own], key=place)


def _key(row: Mapping[str, Any], columns: Iterable[str]) -> tuple[Any, ...]:
  return tuple(row[name] for name in columns)


def _count(
  rows: Iterable[Row], columns: Sequence[str] = IDENTITY
) -> collections.Counter[Any]:
  """Count rows by names and values of the columns that they have."""
  return collections.Counter(
    tuple((name, row[name]) for name in columns if name in row) for row in rows
  )


def _complain(
  path: pathlib.Path, missing: collections.Counter[Any], of: str
) -> None:
  if missing:
    example = ', '.join(f'{k}={v}' for k, v in next(iter(missing)))
    raise Incomplete(
      f'Nothing is written: these runs lack {missing.total()} rows {of} '
      f'{path}, such as {example}. Another --output_dir takes theirs.'
    )


def _check_none_is_lost(
  path: pathlib.Path, before: Iterable[Row], own: Iterable[Row]
) -> None:
  _complain(path, _count(before) - _count(own), 'of')


def _check_like_the_others(
  path: pathlib.Path,
  stay: Iterable[Row],
  own: Iterable[Row],
  unit: Sequence[str],
) -> None:
  """Raise Incomplete if a unit lacks what all others like it have.

  Units are alike if they differ in the last column only.
  """
  others, mine = _count_by_unit(stay, unit), _count_by_unit(own, unit)
  for key, counts in mine.items():
    alike = [c for other, c in others.items() if other[:-1] == key[:-1]]
    if alike:
      missing = functools.reduce(operator.and_, alike) - counts
      name, value = unit[-1], key[-1]
      _complain(
        path, missing, f'at {name} {value} that all other {name}s have in'
      )


def _count_by_unit(
  rows: Iterable[Row], unit: Sequence[str]
) -> dict[tuple[Any, ...], collections.Counter[Any]]:
  """Count the rows of each unit, whatever the last column's value."""
  units: dict[tuple[Any, ...], list[Row]] = {}
  for row in rows:
    units.setdefault(_key(row, unit), []).append(row)
  columns = [name for name in IDENTITY if name != unit[-1]]
  return {key: _count(own, columns) for key, own in units.items()}


def _check_targets(
  path: pathlib.Path, stay: Iterable[Row], own: Iterable[Row]
) -> None:
  """Raise InputError if a workload's rows had different targets."""
  targets = {row['workload']: row.get('target') for row in own}
  for row in stay:
    name, target = row['workload'], row.get('target')
    if target != targets.get(name, target):
      raise InputError(
        f'Invalid target={targets[name]!r} of {name}. Other rows of it in '
        f'{path} have {target!r}; new targets need all seeds.'
      )
