"""Compare x, y, z and longer averages along runs that train at an average.

A method of primal averaging shows its average x. The same run has y, where
gradients are taken, z, which the optimizer steps, and averages of y that watch.
All are measured at each evaluation, so that one can see what a choice among
them could gain. Running statistics of BatchNorm are those of y; x has those
that its submission shows.

Writes sequences.json (a row for each run and candidate) to results/primal/.
The table's last column takes the best candidate at each evaluation, in
hindsight.
"""

import argparse
import math
from collections.abc import Sequence

from lab.studies import steps
from lab.studies.parts import frame, tables, tuned
from lab.studies.parts.frame import Row
from lab.studies.parts.kept_rows import BY_SEED
from lab.studies.parts.methods import NADAMW_AT_AVERAGE
from lab.studies.parts.sequences import Sequences, X, Y, Z
from lab.studies.parts.study import Option, Study
from lab.studies.parts.training import Result, Training, tuned_point

AVERAGES = ('ema 3 %', 'ema 10 %', 'polynomial 9', 'polynomial 4')
BEST = 'best of all'
CANDIDATES = (X, Y, Z, *AVERAGES)
COLUMNS = (
  'workload',
  'method',
  'seed',
  'candidate',
  'target',
  'steps_to_target',
  'ratio_to_x',
  'best_validation',
  'budget_steps',
  'higher_is_better',
)


def trainings(options: argparse.Namespace) -> list[Training]:
  """All runs, seed by seed."""
  candidates = {Y: tuned.CANDIDATES['raw']} | {
    name: tuned.CANDIDATES[name] | {'averaging_batch_norm': 'current'}
    for name in AVERAGES
  }
  found = []
  for seed in options.seeds:
    for workload in options.workloads:
      for method in options.methods:
        point = tuned_point(workload, method)
        found.append(
          Training(
            workload=workload,
            submission=method,
            point=point,
            seed=seed,
            follower=Sequences,
            follows={
              'candidates': candidates,
              'interpolation': point['averaging_interpolation'],
              'evaluated_from': steps.EVALUATED_FROM,
            },
            columns={'method': method},
          )
        )
  return found


def _with_best(result: Result) -> Result:
  """Add the curve of the best candidate at each evaluation."""
  pick = max if result['higher_is_better'] else min
  curves = result['curves']
  best = []
  for points in zip(*curves.values(), strict=True):
    finite = [value for *_, value in points if math.isfinite(value)]
    value = pick(finite, default=math.nan)
    best.append([*points[0][:2], value])
  return result | {'curves': {**curves, BEST: best}}


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of sequences.json; ratios are to x of the same run."""
  rows = frame.rows_of(
    map(_with_best, results),
    {'candidate': X},
    by=('workload', 'seed', 'method'),
  )
  return frame.select(
    [row | {'ratio_to_x': row['ratio_to_nadamw']} for row in rows], COLUMNS
  )


def table(rows: Sequence[Row]) -> str:
  """Make the table of steps to target over those of x, medians over seeds."""
  data = frame.read(rows)
  names = (*CANDIDATES, BEST)
  lines = []
  for method, own in data.groupby('method'):
    groups = [(str(w), g) for w, g in own.groupby('workload')]
    for title, group in [*groups, ('all runs', own)]:
      ratios = group.groupby('candidate')['ratio_to_x'].agg(frame.median)
      cells = [tables.number(ratios.get(name)) for name in names]
      lines.append([str(method), title, *cells])
  return tables.markdown(['method', 'workload', *names], lines)


STUDY = Study(
  folder='primal',
  seeds=(0, 1, 2),
  trainings=trainings,
  files={'sequences.json': rows_of},
  tables={'Steps to target over those of x': ('sequences.json', table)},
  options=(Option('methods', NADAMW_AT_AVERAGE, 'methods'),),
  order=('workload', 'method', 'seed'),
  joins=BY_SEED,
)
