"""From results to rows, and from rows to a frame.

A row is one run and one candidate. A run that never reaches the target takes
infinitely many steps: null in a file, infinity in a frame. The median is the
plain one: where two values are in the middle, their mean, which is infinite if
one of them is. Where a run arrives and the one that it is compared with does
not, the frame has the ratio to T, which that one's steps exceed: the ratio is
at most that.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lab.core import curves
from lab.studies.parts import tables
from lab.studies.parts.training import Result

Row = dict[str, Any]

# Columns in which null means "not reached".
_TIMES = (
  'steps_to_target',
  'seconds_to_target',
  'fraction_of_budget',
  'ratio_to_nadamw',
  'ratio_to_x',
  'ratio',
)
# Ratios of a run's steps to those of another one.
_RATIOS = ('ratio_to_nadamw', 'ratio_to_x')


def rows_of(
  results: Iterable[Result],
  baseline: Mapping[str, Any],
  by: Sequence[str] = ('workload', 'seed'),
  kept: Iterable[Row] = (),
) -> list[Row]:
  """A row for each run and candidate, with all columns that are known.

  Args:
    results: of finished runs.
    baseline: values of columns that a row has to which others are compared.
    by: columns that a row and its baseline share.
    kept: rows of a file to which others are compared where no run has one.
  """
  rows = [row for result in results for row in _rows_of_run(result)]
  compared = [
    row
    for row in rows
    if all(row[key] == value for key, value in baseline.items())
  ]
  plain = {
    tuple(row[key] for key in by): row['steps_to_target']
    for row in (*kept, *compared)
  }
  for row in rows:
    steps = row['steps_to_target']
    other = plain.get(tuple(row[key] for key in by))
    row['ratio_to_nadamw'] = steps / other if steps and other else None
  return rows


def _rows_of_run(result: Result) -> list[Row]:
  higher, budget = result['higher_is_better'], result['budget_steps']
  shared = {
    key: value
    for key, value in result.items()
    if not isinstance(value, dict | list)
  }
  rows = []
  for name, values in result['curves'].items():
    points = [curves.Point(int(step), *rest) for step, *rest in values]
    point = curves.first_at_target(points, result['target'], higher)
    rows.append(
      {
        **shared,
        'candidate': name,
        'steps_to_target': None if point is None else point.step,
        'seconds_to_target': None if point is None else point.seconds,
        'fraction_of_budget': None if point is None else point.step / budget,
        # It may have been there for long.
        'at_first_evaluation': point is not None
        and point.step == points[0].step,
        'best_validation': curves.best(points, higher),
      }
    )
  return rows


def at_names(fractions: Iterable[float]) -> list[str]:
  """Name the columns of `values_at`.

  >>> at_names([0.4, 1.0])
  ['at 0.4 T', 'at 1 T']
  """
  return [f'at {fraction:g} T' for fraction in fractions]


def values_at(
  result: Result, candidate: str, fractions: Sequence[float]
) -> dict[str, float | None]:
  """Return the metric of the first evaluation at or after each fraction of T.

  A value is None where nothing was evaluated.
  """
  points = result['curves'][candidate]
  found = {}
  for name, fraction in zip(at_names(fractions), fractions, strict=True):
    from_step = fraction * result['budget_steps'] * (1.0 - tables.ROUNDING)
    values = [value for step, _, value in points if step >= from_step]
    found[name] = values[0] if values else None
  return found


def rows_at(
  results: Iterable[Result],
  baseline: Mapping[str, Any],
  fractions: Sequence[float],
) -> list[Row]:
  """Rows of `rows_of`, with the columns of `values_at`.

  Args:
    results: of finished runs.
    baseline: of the same run, as in `rows_of`.
    fractions: of T.
  """
  return [
    row | values_at(result, row['candidate'], fractions)
    for result in results
    for row in rows_of([result], baseline)
  ]


def select(rows: Iterable[Row], columns: Sequence[str]) -> list[Row]:
  """Rows with some columns, in their order.

  >>> select([{'a': 1, 'b': 2, 'c': 3}], ['b', 'a'])
  [{'b': 2, 'a': 1}]
  """
  return [{column: row[column] for column in columns} for row in rows]


def read(rows: Iterable[Row]) -> pd.DataFrame:
  """The rows as a frame, with infinity where the target was not reached."""
  data = pd.DataFrame(list(rows))
  for column in data.columns.intersection(_TIMES):
    data[column] = data[column].astype(float).fillna(math.inf)
  if {'steps_to_target', 'budget_steps'} <= {*data.columns}:
    bound = data['steps_to_target'] / data['budget_steps']
    for column in data.columns.intersection(_RATIOS):
      data[column] = data[column].where(data[column] != math.inf, bound)
  return data


def median(values: Iterable[float]) -> float:
  """Median; infinite where the runs in the middle never arrive.

  >>> median([0.7, math.inf, 0.8]), median([0.7, math.inf])
  (0.8, inf)
  """
  values = list(values)
  return statistics.median(values) if values else math.inf


def median_metric(values: pd.Series, higher_is_better: bool) -> float:
  """Median of metrics; a run without a finite value is worse than any other.

  >>> median_metric(pd.Series([0.3, math.nan, 0.5]), False)
  0.5
  """
  worst = -math.inf if higher_is_better else math.inf
  known = values.astype(float)
  return float(known.where(np.isfinite(known), worst).median())


def medians_at(data: pd.DataFrame, fractions: Iterable[float]) -> list[float]:
  """Return the median of each column of `values_at`, for rows of a workload."""
  higher = bool(data['higher_is_better'].iloc[0])
  return [median_metric(data[name], higher) for name in at_names(fractions)]


def gains(
  data: pd.DataFrame, plain: pd.DataFrame
) -> tuple[pd.Series, pd.Series, pd.Series]:
  """Compare the best metric of rows with that of a baseline of the same seed.

  Args:
    data: rows.
    plain: the baseline's, one for each workload and seed.

  Returns:
    The gain of each row, positive where it is better, in units of the range of
    the baseline's values over seeds (NaN where that is 0); the values by
    workload and seed; the range by workload.
  """
  values = plain.set_index(['workload', 'seed'])['best_validation']
  spread = values.groupby('workload').agg(lambda v: v.max() - v.min())
  sign = data['higher_is_better'].map({True: 1.0, False: -1.0})
  other = pd.MultiIndex.from_frame(data[['workload', 'seed']])
  gain = data['best_validation'] - values.reindex(other).to_numpy()
  unit = data['workload'].map(spread).replace(0.0, math.nan)
  # Adding 0 turns -0 into 0.
  return sign * gain / unit + 0.0, values, spread
