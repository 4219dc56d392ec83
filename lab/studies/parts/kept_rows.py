"""Join rows of new runs with those that a study's file has already.

A clone has the rows of a study but not its runs. Where a study's rows of one
workload and seed follow from the runs of that workload and seed alone, whoever
adds a seed makes its runs alone, and the other rows stay. Otherwise new rows
replace all rows. No row is lost in either case: rows are told apart by the
columns that say what was measured.
"""

import collections
import functools
import operator
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab.core import logs
from lab.core.errors import InputError
from lab.studies.parts.frame import Row
from lab.studies.parts.training import Result

UNIT = ('workload', 'seed')
# Columns that say what was measured; all others have what was found.
IDENTITY = (
  *UNIT,
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
  order: Sequence[str],
) -> list[Row]:
  """Return new rows, and a file's rows of other workloads and seeds.

  Args:
    path: of the file, for messages.
    before: the rows that it has, each with a workload and a seed.
    own: the rows of the new runs, sorted by `order`.
    results: of these runs, which may give a file no row.
    order: columns by which the rows are sorted, the seed among them.

  Raises:
    Incomplete: the file has rows of these workloads and seeds that would be
      lost; or a new seed lacks what all other ones of its workload have.
    InputError: rows of one workload would have different targets.
  """
  made = {_key(result, UNIT) for result in results}
  stay = [row for row in before if _key(row, UNIT) not in made]
  replaced = [row for row in before if _key(row, UNIT) in made]
  _check_none_is_lost(path, replaced, own)
  _check_like_the_others(path, stay, own)
  _check_targets(path, stay, own)
  # The rows of one workload and seed are in the order of their file.
  keys = order[: order.index('seed') + 1]
  return sorted([*stay, *own], key=lambda row: _key(row, keys))


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
  path: pathlib.Path, stay: Iterable[Row], own: Iterable[Row]
) -> None:
  """Raise Incomplete if a seed lacks what all others of its workload have."""
  others, mine = _count_by_unit(stay), _count_by_unit(own)
  for (workload, seed), counts in mine.items():
    same = [c for (name, _), c in others.items() if name == workload]
    if same:
      missing = functools.reduce(operator.and_, same) - counts
      _complain(path, missing, f'at seed {seed} that all other seeds have in')


def _count_by_unit(
  rows: Iterable[Row],
) -> dict[tuple[Any, ...], collections.Counter[Any]]:
  """Count the rows of each workload and seed, whatever the seed."""
  units: dict[tuple[Any, ...], list[Row]] = {}
  for row in rows:
    units.setdefault(_key(row, UNIT), []).append(row)
  columns = [name for name in IDENTITY if name != 'seed']
  return {unit: _count(own, columns) for unit, own in units.items()}


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
