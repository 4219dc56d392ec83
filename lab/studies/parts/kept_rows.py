"""Join rows of new runs with those that a study's file has already.

A clone has the rows of a study but not its runs. Most studies have units of
rows that are made together: those of a workload and a seed, of a method, or
each row. Adding a seed or a method then takes its runs alone, and the rows of
other units stay. Without units new rows replace all rows. No row is lost in
either case: rows are told apart by the columns that say what was measured. No
row stays that was compared with others than those of its file.
"""

import collections
import dataclasses
import functools
import operator
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lab.core import logs
from lab.core.errors import InputError
from lab.studies.parts.frame import Row
from lab.studies.parts.training import Result

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
# Columns of what was found on which comparisons depend.
FOUND = ('steps_to_target', 'best_validation')


@dataclasses.dataclass(frozen=True)
class Units:
  """The units of a study's rows.

  Args:
    columns: tell units apart; along the last one a study grows.
    compared_with: of each row, the rows that it is compared with and that are
      in another unit: columns in which they differ from it.
  """

  columns: tuple[str, ...]
  compared_with: tuple[Mapping[str, Any], ...] = ()


BY_SEED = Units(('workload', 'seed'))


class Incomplete(Exception):
  """New rows and those of a file cannot be rows of one study."""


def read(
  path: pathlib.Path, content: str = 'rows', columns: Sequence[str] = ()
) -> list[Row] | None:
  """Return the rows of a file; None if there is no such file.

  Args:
    path: of the file.
    content: what a message calls them.
    columns: those that each row has to have.

  Raises:
    InputError: the file is damaged.
  """
  rows = logs.read_json(str(path))
  if rows is None and not path.exists():
    return None
  if not isinstance(rows, list) or not all(
    isinstance(row, dict) and {*columns} <= {*row} for row in rows
  ):
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
  units: Units,
  place: Callable[[Row], Any],
) -> list[Row]:
  """Return new rows, and a file's rows of other units.

  Args:
    path: of the file, for messages.
    before: the rows that it has.
    own: the rows of the new runs.
    results: of these runs. Where they have the columns of a unit, it is made
      even if a file has no row of it.
    units: of the rows.
    place: key by which the rows of a file are sorted.

  Raises:
    Incomplete: the file has rows of these units that would be lost; a new unit
      lacks what all other ones have that differ in the last column only; or
      rows are compared with others than those that the file would have.
    InputError: the file lacks columns, or rows of one workload would have
      different targets.
  """
  columns = units.columns
  _check_columns(path, before, own, columns)
  made = {_key(row, columns) for row in own}
  made |= {_key(r, columns) for r in results if {*columns} <= {*r}}
  stay = [row for row in before if _key(row, columns) not in made]
  replaced = [row for row in before if _key(row, columns) in made]
  _check_none_is_lost(path, replaced, own)
  _check_like_the_others(path, before, own, columns)
  _check_targets(path, stay, own)
  for other in units.compared_with:
    _check_comparisons(path, before, stay, own, other)
  return sorted([*stay, *own], key=place)


def _key(row: Mapping[str, Any], columns: Iterable[str]) -> tuple[Any, ...]:
  return tuple(row[name] for name in columns)


def _identity(
  row: Row, columns: Sequence[str] = IDENTITY
) -> tuple[tuple[str, Any], ...]:
  """Return names and values of the columns that the row has."""
  return tuple((name, row[name]) for name in columns if name in row)


def _text(identity: Iterable[tuple[str, Any]]) -> str:
  return ', '.join(f'{name}={value}' for name, value in identity)


def _count(
  rows: Iterable[Row], columns: Sequence[str] = IDENTITY
) -> collections.Counter[Any]:
  return collections.Counter(_identity(row, columns) for row in rows)


def _complain(
  path: pathlib.Path, missing: collections.Counter[Any], of: str
) -> None:
  if missing:
    raise Incomplete(
      f'Nothing is written: these runs lack {missing.total()} rows {of} '
      f'{path}, such as {_text(next(iter(missing)))}.'
    )


def _check_columns(
  path: pathlib.Path,
  before: Iterable[Row],
  own: Sequence[Row],
  columns: Sequence[str],
) -> None:
  """Raise InputError if rows of a file lack a column that is needed."""
  has_target = any('target' in row for row in own)
  needed = (*columns, 'target') if has_target else columns
  for row in before:
    for name in needed:
      if name not in row:
        raise InputError(
          f'Cannot join the rows of {path}: they have no column {name!r}. '
          'Move the file away, or use another --output_dir.'
        )


def _check_none_is_lost(
  path: pathlib.Path, before: Iterable[Row], own: Iterable[Row]
) -> None:
  _complain(path, _count(before) - _count(own), 'of')


def _check_like_the_others(
  path: pathlib.Path,
  before: Iterable[Row],
  own: Iterable[Row],
  columns: Sequence[str],
) -> None:
  """Raise Incomplete if a new unit lacks what all others like it have.

  Units are alike if they differ in the last column only.
  """
  others, mine = _count_by_unit(before, columns), _count_by_unit(own, columns)
  for key, counts in mine.items():
    alike = [c for other, c in others.items() if other[:-1] == key[:-1]]
    if alike:
      missing = functools.reduce(operator.and_, alike) - counts
      name, value = columns[-1], key[-1]
      _complain(
        path, missing, f'at {name} {value} that all other {name}s have in'
      )


def _count_by_unit(
  rows: Iterable[Row], columns: Sequence[str]
) -> dict[tuple[Any, ...], collections.Counter[Any]]:
  """Count the rows of each unit, whatever the last column's value."""
  units: dict[tuple[Any, ...], list[Row]] = {}
  for row in rows:
    units.setdefault(_key(row, columns), []).append(row)
  rest = [name for name in IDENTITY if name != columns[-1]]
  return {key: _count(own, rest) for key, own in units.items()}


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
        f'{path} have {target!r}; new targets need all of its rows.'
      )


def _check_comparisons(
  path: pathlib.Path,
  before: Iterable[Row],
  stay: Iterable[Row],
  own: Iterable[Row],
  other: Mapping[str, Any],
) -> None:
  """Raise Incomplete if a row was compared with one that the file has not.

  Args:
    path: of the file.
    before: its rows.
    stay: those that stay.
    own: new ones.
    other: columns in which the rows that others are compared with differ.
  """
  made = {_identity(row): row for row in own}
  known = {_identity(row): row for row in before}
  for row in own:
    partner = _identity({**row, **other})
    if partner not in made:
      raise Incomplete(
        f'Nothing is written: these runs lack {_text(partner)}, with which '
        'others are compared.'
      )
  for row in stay:
    partner = _identity({**row, **other})
    if partner in made and _found(made[partner]) != _found(known.get(partner)):
      raise Incomplete(
        f'Nothing is written: rows of {path} that would stay, such as '
        f'{_text(_identity(row))}, are compared with another '
        f'{_text(partner)} than that of these runs. Run them all.'
      )


def _found(row: Row | None) -> list[Any] | None:
  return None if row is None else [row.get(name) for name in FOUND]
