"""The five published points of AlgoPerf's NadamW, beside the tuned point.

AlgoPerf's external ruleset gives a submission five points for all workloads and
counts the fastest trial of a study. Each published point is trained for each
workload and seed as it is; several averages follow each run. The best of the
five is the one that reaches the target first, for each average on its own, with
the median over seeds. The tuned point's runs are those of `steps`.

Writes published.json (a row for each run and candidate).
"""

import argparse
import json
import math
from collections.abc import Sequence

import pandas as pd

from lab.studies import steps
from lab.studies.parts import frame, tables, tuned
from lab.studies.parts.averages import Averages
from lab.studies.parts.frame import Row
from lab.studies.parts.kept_rows import BY_SEED
from lab.studies.parts.study import Study
from lab.studies.parts.training import ROOT, Result, Training

POINTS = ROOT / 'tuning_search_spaces' / 'nadamw.json'
# Number of the tuned point; the published ones have 1 to 5.
TUNED = 0
COLUMNS = (
  'workload',
  'seed',
  'point',
  'candidate',
  'target',
  'steps_to_target',
  'best_validation',
  'budget_steps',
  'higher_is_better',
)
SHOWN = ('raw', 'ema 1 %', 'lawa 1 %', 'ema 5 %', 'lawa 10 %', 'polynomial 9')


def trainings(options: argparse.Namespace) -> list[Training]:
  """All runs, seed by seed; at the tuned point last."""
  points = json.loads(POINTS.read_text())
  found = []
  for seed in options.seeds:
    for workload in options.workloads:
      found += [
        Training(
          workload=workload,
          submission='nadamw',
          point=point,
          seed=seed,
          follower=Averages,
          follows={
            'candidates': {name: tuned.CANDIDATES[name] for name in SHOWN},
            'evaluated_from': steps.EVALUATED_FROM,
          },
          columns={'point': number},
        )
        for number, point in enumerate(points, 1)
      ]
      found.append(steps.runs(workload, 'nadamw', seed)[0])
  return found


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of published.json; `point` is 0 for the tuned point."""
  rows = frame.rows_of(
    [{'point': TUNED} | result for result in results],
    {'candidate': 'raw'},
    by=('workload', 'seed', 'point'),
  )
  return frame.select(
    [row for row in rows if row['candidate'] in SHOWN], COLUMNS
  )


def fastest(group: pd.DataFrame) -> tuple[float, str]:
  """Return median steps of the fastest trial, and the points that were it.

  Args:
    group: rows of one workload and candidate.
  """
  best = group.loc[group.groupby('seed')['steps_to_target'].idxmin()]
  arrived = best[best['steps_to_target'] < math.inf]
  points = ', '.join(map(str, sorted(set(arrived['point']))))
  return frame.median(best['steps_to_target']), points


def _best_metric(group: pd.DataFrame) -> tuple[float, int]:
  """Return the best median metric of a point over seeds, and the point."""
  higher = group['higher_is_better'].iloc[0]
  medians = {
    int(point): frame.median_metric(own['best_validation'], higher)
    for point, own in group.groupby('point')
  }
  pick = max if higher else min
  point = pick(medians, key=lambda number: medians[number])
  return medians[point], point


def table(rows: Sequence[Row]) -> str:
  """Make the table of the best of five points and of the tuned one.

  Steps to target are fractions of T. The last columns have the best metric of
  the raw weights within T, of the point with the best median, and the target.
  """
  data = frame.read(rows)
  lines = []
  for workload, group in data.groupby('workload'):
    budget = group['budget_steps'].iloc[0]
    for is_tuned, title in ((False, 'best of five'), (True, 'tuned')):
      own = group[(group['point'] == TUNED) == is_tuned]
      if not len(own):
        continue
      line = [str(workload), title]
      for name in SHOWN:
        found, points = fastest(own[own['candidate'] == name])
        share = tables.number(found / budget)
        line.append(
          f'{share} (point {points})' if points and not is_tuned else share
        )
      metric, point = _best_metric(own[own['candidate'] == 'raw'])
      best = tables.number(metric, '.4g')
      line.append(best if is_tuned else f'{best} (point {point})')
      sign = '≥' if own['higher_is_better'].iloc[0] else '≤'
      line.append(f'{sign} {own["target"].iloc[0]:.4g}')
      lines.append(line)
  header = ['workload', 'point', *SHOWN, 'best metric', 'target']
  return tables.markdown(header, lines)


STUDY = Study(
  folder='published',
  seeds=(0, 1, 2),
  trainings=trainings,
  files={'published.json': rows_of},
  tables={'Best of the five published points': ('published.json', table)},
  shares='study',
  joins=BY_SEED,
)
