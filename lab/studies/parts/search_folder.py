"""Read the files of a search, and check what goes on in them.

A search in git has its rows but not its runs. Whoever goes on trains again, and
must not lose the rows before there are as many new ones.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from lab.core import logs
from lab.core.errors import InputError
from lab.studies.parts import kept_rows, search
from lab.studies.parts.methods import METHODS
from weightavg.pytorch.build_nadamw import NADAMW
from weightavg.schemes import Raw
from weightavg.submission_config import SubmissionConfig

SEARCH, TRIALS, FINALS = 'search.json', 'trials.json', 'finals.json'
# Keys that search.json gains when the search ends.
FINISHED = ('trials', 'stopped_trials', 'fraction_of_steps', 'winners')


def read_record(folder: pathlib.Path) -> dict[str, Any]:
  """Return the content of search.json; {} if there is no search.

  Raises:
    InputError: a file of the search is damaged, or search.json is missing.
  """
  path = folder / SEARCH
  if not path.exists():
    if (folder / TRIALS).exists():
      raise InputError(
        f'Cannot read the search {path}. It is missing beside {TRIALS}, and '
        'with it the ranges.'
      )
    return {}
  record = logs.read_json(str(path))
  has = set(record) if isinstance(record, dict) else set()
  if 'ranges' not in has or has & set(FINISHED) not in (set(), set(FINISHED)):
    raise InputError(f'Cannot read the search {path}. It is damaged.')
  return record


def number_of_rows(folder: pathlib.Path) -> int:
  """Return the number of rows in trials.json, 0 if there is no such file.

  Raises:
    InputError: the file is damaged.
  """
  return len(kept_rows.read(folder / TRIALS, 'trials') or [])


def check_same(
  folder: pathlib.Path, begun: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  """Raise InputError if a search was begun with other values than the wanted.

  Args:
    folder: of the search.
    begun: content of search.json; empty if there is no search.
    wanted: values that must be in it.
  """
  for key, value in wanted.items():
    if begun and begun.get(key) != value:
      raise InputError(
        f'Invalid {key}={json.dumps(value)}. The search in {folder} was begun '
        f'with {json.dumps(begun.get(key))}; another one needs another '
        '--output_dir.'
      )


def check_number(
  folder: pathlib.Path, begun: Mapping[str, Any], number: int
) -> None:
  """Raise InputError if the search has more trials than the number.

  Args:
    folder: of the search, with the rows of its trials.
    begun: content of search.json, with their number once it is finished.
    number: of trials that are wanted.
  """
  done = max(number_of_rows(folder), begun.get('trials', 0))
  if number < done:
    raise InputError(
      f'Invalid trials={number}. The search in {folder} has {done}; a smaller '
      'one needs another --output_dir.'
    )


def read_ranges(path: str) -> dict[str, dict[str, Any]]:
  """Read the shared ranges of all searches from a file.

  Raises:
    InputError: the file cannot be read, a range is empty, or one of its ends is
      no value of the hyperparameter.
  """
  ranges = logs.read_json(path)
  if ranges is None:
    raise InputError(f'Cannot read the ranges {path}: missing, or no JSON.')
  search.check_ranges(ranges, path)
  inside = {name: _ends(span)[0] for name, span in search.RANGES.items()}
  for name, span in ranges.items():
    for value in _ends(span):
      if not isinstance(value, (int, float)):
        raise InputError(
          f'Invalid range of {name!r} in {path}. {value!r} is no number.'
        )
      point = METHODS['nadamw'].point(inside | {name: value})
      try:
        SubmissionConfig.from_point(point, NADAMW, Raw)
      except ValueError as error:
        raise InputError(
          f'Invalid range of {name!r} in {path}. {error}'
        ) from error
  return ranges


def _ends(span: Mapping[str, Any]) -> list[Any]:
  """Return the ends of a range, or all its points."""
  return span.get('feasible_points') or [span['min'], span['max']]
