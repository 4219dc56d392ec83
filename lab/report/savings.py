"""GPU-hours to the target and for the budget, and savings against a baseline.

What a missed target costs is a convention, so it is named in every table:
- budget: the ruleset's whole time budget, since the run was paid in full;
- spent: the billed time of the runs that missed;
- reached: nothing; only workloads that both submissions reach are compared.
Ajroldi et al. (2025, arXiv 2502.06761), Table 1, reports such totals.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from lab.core.errors import InputError
from lab.report import intervals

MISSED_RULES = ('budget', 'spent', 'reached')
_SECONDS_PER_HOUR = 3600.0


def gpu_hours(
  medians: pd.DataFrame,
  trials: pd.DataFrame,
  budgets: Mapping[str, float | None],
  gpus: int | None,
) -> pd.DataFrame:
  """GPU-hours of each submission and workload.

  Args:
    medians: From `time_to_target.of_submissions`.
    trials: From `time_to_target.of_trials`.
    budgets: Billed seconds allowed on each workload.
    gpus: Devices of runs whose logs do not tell; one if None.

  Returns:
    Columns submission, workload, gpus, to_target (infinite where missed),
    for_budget and spent.
  """
  rows = []
  keys = ['submission', 'workload']
  for (submission, workload), group in trials.groupby(keys, sort=True):
    known = group['gpus'].dropna()
    count = int(known.iloc[0]) if len(known) else (gpus or 1)
    hours = count / _SECONDS_PER_HOUR
    budget = budgets.get(str(workload))
    longest = group.groupby('study')['total_seconds'].max()
    rows.append(
      {
        'submission': submission,
        'workload': workload,
        'gpus': count,
        'for_budget': math.nan if budget is None else budget * hours,
        'spent': float(np.median(longest)) * hours,
        'studies': len(longest),
      }
    )
  table = pd.DataFrame(rows).merge(medians[[*keys, 'seconds']], on=keys)
  table['to_target'] = table['seconds'] * table['gpus'] / _SECONDS_PER_HOUR
  return table.drop(columns='seconds')


def _costs(hours: pd.DataFrame, rule: str) -> pd.Series:
  """GPU-hours by workload, missed targets by the rule, NaN if left out."""
  hours = hours.set_index('workload')
  missed = {
    'budget': hours['for_budget'],
    'spent': hours['spent'],
    'reached': pd.Series(math.nan, index=hours.index),
  }[rule]
  return hours['to_target'].where(np.isfinite(hours['to_target']), missed)


def against(
  hours: pd.DataFrame, studies: pd.DataFrame, baseline: str, rule: str
) -> pd.DataFrame:
  """Total GPU-hours beside the baseline's, over workloads both have.

  Args:
    hours: From `gpu_hours`, of the workloads that count.
    studies: From `time_to_target.of_studies`, for the interval.
    baseline: Submission to compare with.
    rule: What a missed target costs, one of MISSED_RULES.

  Returns:
    A row per submission: workloads compared, workloads reached, fewest studies,
    GPU-hours, those of the baseline, saving = 1 - ratio of the totals with its
    interval, and the median over workloads of the ratio.

  Raises:
    InputError: the baseline has no hours.
  """
  rng = np.random.default_rng(intervals.SEED)
  seconds = intervals.seconds_by_study(studies)
  keyed = {name: rows for name, rows in hours.groupby('submission', sort=True)}
  if baseline not in keyed:
    raise InputError(
      f'Invalid {baseline=}. Must have logs of a base workload, as it is '
      'compared on these.'
    )
  reference = _costs(keyed[baseline], rule)
  rows = []
  for submission, group in keyed.items():
    costs = _costs(group, rule).dropna()
    common = costs.index.intersection(reference.dropna().index)
    mine, other = costs[common].sum(), reference[common].sum()
    totals = np.zeros((2, intervals.RESAMPLES))
    for workload in common:
      drawn = intervals.paired_medians(
        seconds[submission, workload], seconds[baseline, workload], rng
      )
      for i, name in enumerate((submission, baseline)):
        totals[i] += _drawn_costs(drawn[i], keyed[name], workload, rule)
    low = high = math.nan
    if other > 0:
      low, high = intervals.percentiles(1 - totals[0] / totals[1])
    rows.append(
      {
        'submission': submission,
        'workloads': len(common),
        'reached': int(np.isfinite(group['to_target']).sum()),
        'fewest_studies': min(
          (len(seconds[submission, w]) for w in common), default=0
        ),
        'gpu_hours': mine,
        'baseline_gpu_hours': other,
        'saving': 1 - mine / other if other > 0 else math.nan,
        'saving_low': low,
        'saving_high': high,
        'median_ratio': (costs[common] / reference[common]).median(),
      }
    )
  return pd.DataFrame(rows)


def _drawn_costs(
  seconds: np.ndarray, hours: pd.DataFrame, workload: str, rule: str
) -> np.ndarray:
  """GPU-hours of resampled medians on a workload.

  Under `reached`, too, a resample that misses the target costs the runs' time:
  leaving the workload out would compare other workloads than the table does.
  """
  row = hours.set_index('workload').loc[workload]
  missed = row['for_budget'] if rule == 'budget' else row['spent']
  cost = seconds * row['gpus'] / _SECONDS_PER_HOUR
  return np.where(np.isfinite(cost), cost, missed)
