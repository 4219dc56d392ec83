"""Time to target, as the benchmark's scoring defines it.

A trial reaches the target at the first row of its file whose value is as good
as the target. A study counts by its fastest trial. A submission counts by the
median over studies, infinite where at least half of them miss.

The rules of the competition compare trials by seconds. The published scoring
takes the trial with the fewest evaluations before the target, and among equals
the first in the order of the directory. FASTEST names both.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lab.core import curves
from lab.report.log_files import Evaluation, Trial
from lab.report.targets import Goal

INF = math.inf
FASTEST = ('seconds', 'evaluations')
STUDY = ['submission', 'workload', 'study']
PAIR = ['submission', 'workload']


def first_reached(
  evaluations: Iterable[Evaluation], goal: Goal
) -> Evaluation | None:
  """First evaluation as good as the target, None if there is none."""
  for evaluation in evaluations:
    if curves.reaches(evaluation.value, goal.target, goal.higher_is_better):
      return evaluation
  return None


def step_time(evaluations: Sequence[Evaluation]) -> float | None:
  """Median over evaluation periods of the billed seconds per step."""
  ratios = [
    (b.seconds - a.seconds) / (b.step - a.step)
    for a, b in itertools.pairwise(evaluations)
    if b.step > a.step
  ]
  return float(np.median(ratios)) if ratios else None


def _trial_row(trial: Trial, goal: Goal) -> dict[str, Any]:
  reached = first_reached(trial.evaluations, goal)
  points = [
    curves.Point(int(e.step), e.seconds, e.value) for e in trial.evaluations
  ]
  return {
    'submission': trial.submission,
    'workload': trial.workload,
    'framework': trial.framework,
    'study': trial.study,
    'trial': trial.trial,
    'seconds': INF if reached is None else reached.seconds,
    'steps': INF if reached is None else reached.step,
    'evaluations': INF
    if reached is None
    else 1 + trial.evaluations.index(reached),
    'best': curves.best(points, goal.higher_is_better),
    'total_seconds': max(e.seconds for e in trial.evaluations),
    'total_steps': max(e.step for e in trial.evaluations),
    'step_seconds': step_time(trial.evaluations),
    'evaluation_share': trial.evaluation_share,
    'averaging_share': trial.averaging_share,
    'steps_per_call': trial.steps_per_call,
    'gpus': trial.gpus,
  }


def of_trials(
  trials: Iterable[Trial], goals: Mapping[str, Goal]
) -> pd.DataFrame:
  """A row per trial: time to target, best value, time of a step."""
  rows = [_trial_row(trial, goals[trial.workload]) for trial in trials]
  return pd.DataFrame(rows).sort_values(
    [*STUDY, 'trial'], ignore_index=True, kind='stable'
  )


def of_studies(
  trials: pd.DataFrame, goals: Mapping[str, Goal], fastest: str = 'seconds'
) -> pd.DataFrame:
  """Fastest trial of each study; the one with the best value where all miss.

  Args:
    trials: From `of_trials`.
    goals: Goal of each workload.
    fastest: One of FASTEST; equal numbers of evaluations compare by seconds.
  """
  sign = trials['workload'].map(
    lambda name: -1.0 if goals[name].higher_is_better else 1.0
  )
  ranked = trials.assign(_rank=sign * trials['best'].astype(float))
  order = [fastest, 'seconds', '_rank', 'trial']
  ranked = ranked.sort_values([*dict.fromkeys(order)], kind='stable')
  chosen = ranked.groupby(STUDY).head(1).drop(columns='_rank')
  counts = trials.groupby(STUDY).size().rename('trials').reset_index()
  return (
    chosen.merge(counts, on=STUDY)
    .sort_values(STUDY, ignore_index=True)
    .rename(columns={'trial': 'fastest_trial'})
  )


def median(values: Iterable[float]) -> float:
  """Median in which infinite values count as larger than any.

  >>> median([3.0, math.inf, 1.0]), median([math.inf, 1.0])
  (3.0, inf)
  """
  return float(np.median(list(values)))


def of_submissions(
  studies: pd.DataFrame, goals: Mapping[str, Goal]
) -> pd.DataFrame:
  """Median over studies for each submission and workload.

  `fraction_of_budget` is the median of steps over the workload's step hint.
  """
  rows = []
  for (submission, workload), group in studies.groupby(PAIR, sort=True):
    steps = median(group['steps'])
    hint = goals[str(workload)].step_hint
    rows.append(
      {
        'submission': submission,
        'workload': workload,
        'seconds': median(group['seconds']),
        'steps': steps,
        'fraction_of_budget': steps / hint if hint else math.nan,
        'studies': len(group),
        'reached': int(np.isfinite(group['seconds']).sum()),
      }
    )
  return pd.DataFrame(rows)


def best_values(
  trials: pd.DataFrame, goals: Mapping[str, Goal]
) -> pd.DataFrame:
  """Best validation metric: best trial of a study, median and range of studies.

  Also the medians over trials of a step's time and of the shares of evaluation
  and averaging.
  """
  rows = []
  for (submission, workload), group in trials.groupby(PAIR, sort=True):
    goal = goals[str(workload)]
    pick = 'max' if goal.higher_is_better else 'min'
    values = group.groupby('study')['best'].agg(pick).astype(float).dropna()
    measured = group[
      ['step_seconds', 'evaluation_share', 'averaging_share']
    ].astype(float)
    rows.append(
      {
        'submission': submission,
        'workload': workload,
        'metric': goal.metric,
        'best': values.median(),
        'best_min': values.min(),
        'best_max': values.max(),
        'target': goal.target,
        **measured.median().to_dict(),
        'studies': len(values),
        'trials': len(group),
      }
    )
  return pd.DataFrame(rows)


def matrix(medians: pd.DataFrame, column: str = 'seconds') -> pd.DataFrame:
  """Submissions by workloads; NaN where a submission has no logs."""
  return medians.pivot(index='submission', columns='workload', values=column)
