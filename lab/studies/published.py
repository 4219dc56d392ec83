"""The five published points of AlgoPerf's NadamW, beside the tuned point.

AlgoPerf's external ruleset gives a submission five points for all workloads and
counts the fastest trial of a study. Each published point is trained for each
workload and seed as it is; several averages follow each run. The best of the
five is the one that reaches the target first, for each average on its own, with
the median over seeds.

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
from lab.studies.parts.study import Study
from lab.studies.parts.training import ROOT, Result, Training

POINTS = ROOT / 'tuning_search_spaces' / 'nadamw.json'
COLUMNS = (
  'workload',
  'seed',
  'point',
  'candidate',
  'target',
  'steps_to_target',
  'best_validation',
  'budget_steps',
)
SHOWN = ('raw', 'ema 1 %', 'lawa 1 %', 'ema 5 %', 'lawa 10 %', 'polynomial 9')


def trainings(options: argparse.Namespace) -> list[Training]:
  """All runs, seed by seed."""
  points = json.loads(POINTS.read_text())
  return [
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
    for seed in options.seeds
    for workload in options.workloads
    for number, point in enumerate(points, 1)
  ]


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of published.json; points are numbered from 1."""
  rows = frame.rows_of(
    results, {'candidate': 'raw'}, by=('workload', 'seed', 'point')
  )
  return frame.select(rows, COLUMNS)


def fastest(group: pd.DataFrame) -> tuple[float, str]:
  """Return median steps of the fastest trial, and the points that were it.

  Args:
    group: rows of one workload and candidate.
  """
  best = group.loc[group.groupby('seed')['steps_to_target'].idxmin()]
  arrived = best[best['steps_to_target'] < math.inf]
  points = ', '.join(map(str, sorted(set(arrived['point']))))
  return frame.median(best['steps_to_target']), points


def table(rows: Sequence[Row]) -> str:
  """Make the table of the best of five points, as a fraction of T."""
  data = frame.read(rows)
  lines = []
  for workload, group in data.groupby('workload'):
    budget = group['budget_steps'].iloc[0]
    line = [str(workload)]
    for name in SHOWN:
      own = group[group['candidate'] == name]
      found, points = fastest(own)
      share = tables.number(found / budget)
      line.append(f'{share} (point {points})' if points else share)
    lines.append(line)
  return tables.markdown(['workload', *SHOWN], lines)


STUDY = Study(
  folder='published',
  seeds=(0, 1, 2),
  trainings=trainings,
  files={'published.json': rows_of},
  tables={'Best of the five published points': ('published.json', table)},
  order=('workload', 'seed', 'point'),
)
