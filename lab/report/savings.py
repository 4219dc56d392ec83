"""GPU-hours to the target and for the budget, and savings against a baseline.

What a missed target costs is a convention, so it is named in every table:
- budget: the ruleset's whole time budget, since the run was paid in full;
- spent: the billed time of the runs that missed;
- reached: nothing; only workloads that both submissions reach are compared.
Ajroldi et al. (2025, arXiv 2502.06761), Table 1, reports such totals.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

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


def against(hours: pd.DataFrame, baseline: str, rule: str) -> pd.DataFrame:
  """Total GPU-hours beside the baseline's, over workloads both have.

  Args:
    hours: From `gpu_hours`, of the workloads that count.
    baseline: Submission to compare with.
    rule: What a missed target costs, one of MISSED_RULES.

  Returns:
    A row per submission: workloads compared, workloads reached, GPU-hours,
    those of the baseline, saving = 1 - ratio of the totals, and the median over
    workloads of the ratio.
  """
  reference = _costs(hours[hours['submission'] == baseline], rule)
  rows = []
  for submission, group in hours.groupby('submission', sort=True):
    costs = _costs(group, rule).dropna()
    common = costs.index.intersection(reference.dropna().index)
    mine, other = costs[common].sum(), reference[common].sum()
    rows.append(
      {
        'submission': submission,
        'workloads': len(common),
        'reached': int(np.isfinite(group['to_target']).sum()),
        'gpu_hours': mine,
        'baseline_gpu_hours': other,
        'saving': 1 - mine / other if other > 0 else math.nan,
        'median_ratio': (costs[common] / reference[common]).median(),
      }
    )
  return pd.DataFrame(rows)


def by_workload(medians: pd.DataFrame, baseline: str) -> list[dict[str, Any]]:
  """Steps and seconds relative to the baseline's, where both reach."""
  keyed = medians.set_index(['submission', 'workload'])
  rows = []
  for submission, workload in keyed.index:
    if (baseline, workload) not in keyed.index or submission == baseline:
      continue
    mine, other = (
      keyed.loc[(submission, workload)],
      keyed.loc[(baseline, workload)],
    )
    both = math.isfinite(mine['seconds']) and math.isfinite(other['seconds'])
    rows.append(
      {
        'submission': submission,
        'workload': workload,
        'steps_ratio': mine['steps'] / other['steps'] if both else math.nan,
        'seconds_ratio': mine['seconds'] / other['seconds']
        if both
        else math.nan,
      }
    )
  return rows
