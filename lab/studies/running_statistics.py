"""Compare running statistics of BatchNorm for weights that were never trained.

An average at which training takes place, x, is evaluated, and forward passes
are made at y. Each way to get statistics for x has a run of its own; training
is the same in all runs of a method, bit for bit:

- current: those of y;
- averaged: the average of those of y, as x is the average of z;
- refreshed: kept by forward passes at x every few steps;
- recomputed: at each evaluation from training batches, by an observer. No
  submission does it.

Methods are at the point of their search. Writes running_statistics.json (a row
for each run) to results/primal/.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from lab.studies import steps
from lab.studies.parts import frame, tables
from lab.studies.parts.frame import Row
from lab.studies.parts.kept_rows import BY_SEED
from lab.studies.parts.methods import NADAMW_AT_AVERAGE
from lab.studies.parts.recomputed import BATCHES, Recomputed
from lab.studies.parts.shown import SHOWN, Shown
from lab.studies.parts.study import Option, Study
from lab.studies.parts.training import Result, Training, tuned_point

RECOMPUTED = f'recomputed from {BATCHES} batches'
WAYS: dict[str, dict[str, Any]] = {
  'current': {'averaging_batch_norm': 'current'},
  'averaged': {'averaging_batch_norm': 'averaged'},
  **{
    f'refreshed every {every} steps': {
      'averaging_batch_norm': 'refreshed',
      'averaging_refresh_every': every,
    }
    for every in (3, 10, 25)
  },
  RECOMPUTED: {'averaging_batch_norm': 'current'},
}
FRACTIONS = (0.4, 0.6, 0.8, 0.9, 1.0)
COLUMNS = (
  'workload',
  'method',
  'statistics',
  'seed',
  'target',
  'steps_to_target',
  'best_validation',
  'budget_steps',
  'higher_is_better',
  *frame.at_names(FRACTIONS),
)


def trainings(options: argparse.Namespace) -> list[Training]:
  """All runs, seed by seed."""
  return [
    Training(
      workload=workload,
      submission=method,
      point=tuned_point(workload, method) | fields,
      seed=seed,
      follower=Recomputed if way == RECOMPUTED else Shown,
      follows={'evaluated_from': steps.EVALUATED_FROM},
      columns={'method': method, 'statistics': way},
    )
    for seed in options.seeds
    for workload in options.workloads
    for method in options.methods
    for way, fields in WAYS.items()
  ]


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of running_statistics.json."""
  rows = frame.rows_at(results, {'candidate': SHOWN}, FRACTIONS)
  return frame.select(rows, COLUMNS)


def table(rows: Sequence[Row]) -> str:
  """Make the table of medians over seeds; steps to target are shares of T."""
  data = frame.read(rows)
  share = data['steps_to_target'] / data['budget_steps']
  data = data.assign(share=share)
  lines = []
  for (workload, method), group in data.groupby(['workload', 'method']):
    for way in WAYS:
      own = group[group['statistics'] == way]
      if len(own):
        medians = frame.medians_at(own, FRACTIONS)
        cells = [tables.number(median, '.4f') for median in medians]
        to_target = tables.number(frame.median(own['share']))
        lines.append([str(workload), str(method), way, *cells, to_target])
  at = frame.at_names(FRACTIONS)
  header = ['workload', 'method', 'statistics', *at, 'steps to target, of T']
  return tables.markdown(header, lines)


STUDY = Study(
  folder='primal',
  seeds=(0, 1, 2),
  trainings=trainings,
  files={'running_statistics.json': rows_of},
  tables={
    'Metric with each kind of running statistics': (
      'running_statistics.json',
      table,
    )
  },
  options=(Option('methods', NADAMW_AT_AVERAGE, 'methods'),),
  workloads=('glyph_resnet',),
  order=('workload', 'method', 'seed'),
  joins=BY_SEED,
)
