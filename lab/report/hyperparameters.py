"""Time to target as a function of one hyperparameter.

Every trial with hparams.json is a point. A parabola in the logarithm of the
averaging horizon is fitted to the trials of a submission and workload that
reach the target; its vertex is the best horizon. Learning rates get no fit,
since the points of a search space usually differ in other hyperparameters, too.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lab.report import time_to_target
from lab.report.log_files import Trial
from lab.report.targets import Goal

HORIZON = 'averaging_horizon'
LEARNING_RATE = 'learning_rate'
SCHEDULE = 'schedule'
NUMERIC = (HORIZON, LEARNING_RATE)
FITTED = (HORIZON,)


def _schedule(point: Mapping[str, Any]) -> str | None:
  """Name of a point's schedule with its length, as a fraction of T."""
  name, factor = point.get(SCHEDULE), point.get('schedule_factor')
  if name is None and factor is None:
    return None
  return f'{name or "cosine"} x {1 if factor is None else factor}'


def points(
  trials: Iterable[Trial], goals: Mapping[str, Goal], name: str
) -> pd.DataFrame:
  """A row per trial that has the hyperparameter.

  Columns: submission, workload, study, trial, value, fraction_of_budget
  (infinite where missed). Empty unless some submission has two values.
  """
  rows = []
  for trial in trials:
    point = trial.hyperparameters
    value = _schedule(point) if name == SCHEDULE else point.get(name)
    hint = goals[trial.workload].step_hint
    if value is None or not hint:
      continue
    if name in NUMERIC and not _is_positive(value):
      continue
    reached = time_to_target.first_reached(
      trial.evaluations, goals[trial.workload]
    )
    rows.append(
      {
        'submission': trial.submission,
        'workload': trial.workload,
        'study': trial.study,
        'trial': trial.trial,
        'value': value,
        'fraction_of_budget': math.inf
        if reached is None
        else reached.step / hint,
      }
    )
  table = pd.DataFrame(rows)
  if table.empty:
    return table
  varied = table.groupby(['submission', 'workload'])['value'].nunique().max()
  return table if varied > 1 else table.iloc[:0]


def _is_positive(value: Any) -> bool:
  # Integers may be beyond all floats.
  return isinstance(value, int | float) and 0 < value <= sys.float_info.max


def fit(
  values: Iterable[float], fractions: Iterable[float]
) -> dict[str, Any] | None:
  """Parabola c0 + c1 log10(x) + c2 log10(x)^2 by least squares.

  Returns:
    Its coefficients, lowest power first, and the best value within the range
    measured (the vertex, or the better end where the parabola opens downwards);
    None with fewer than three different values that reach the target.
  """
  x, y = (
    np.log10(np.array(list(values), float)),
    np.array(list(fractions), float),
  )
  x, y = x[np.isfinite(y)], y[np.isfinite(y)]
  if len(np.unique(x)) < 3:
    return None
  c0, c1, c2 = np.polynomial.polynomial.polyfit(x, y, 2)
  candidates = [x.min(), x.max()]
  if c2 > 0:
    candidates.append(float(np.clip(-c1 / (2 * c2), x.min(), x.max())))
  heights = [c0 + c1 * v + c2 * v * v for v in candidates]
  return {
    'coefficients': [float(c0), float(c1), float(c2)],
    'best_value': float(10 ** candidates[int(np.argmin(heights))]),
    'best_fraction_of_budget': float(min(heights)),
    'trials': len(x),
  }


def fits(table: pd.DataFrame) -> list[dict[str, Any]]:
  """Fit of each submission and workload that has enough trials."""
  if table.empty:
    return []
  rows = []
  for (submission, workload), group in table.groupby(
    ['submission', 'workload']
  ):
    fitted = fit(group['value'], group['fraction_of_budget'])
    if fitted is not None:
      low, high = float(group['value'].min()), float(group['value'].max())
      row = {'submission': submission, 'workload': workload}
      rows.append(row | fitted | {'lowest': low, 'highest': high})
  return rows
