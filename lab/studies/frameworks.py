"""PyTorch and JAX: the same submission, data, initial weights and target.

`nadamw` and `nadamw_ema` are trained in both frameworks on the workloads that
have a twin in JAX, at NadamW's tuned point, with several seeds. Dropout draws
other numbers in each framework.

Writes frameworks.json (a row for each run).
"""

import argparse
from collections.abc import Sequence

from lab.core.errors import InputError
from lab.core.frameworks import FRAMEWORKS
from lab.studies.parts import frame, tables
from lab.studies.parts.frame import Row
from lab.studies.parts.kept_rows import BY_SEED
from lab.studies.parts.shown import SHOWN, Shown
from lab.studies.parts.study import Study
from lab.studies.parts.training import Result, Training, tuned_point
from lab.workloads import jax as twins

SUBMISSIONS = ('nadamw', 'nadamw_ema')
HORIZON = 0.03
# No submission is at a target earlier.
EVALUATED_FROM = 0.3
COLUMNS = (
  'workload',
  'seed',
  'submission',
  'framework',
  'target',
  'steps_to_target',
  'fraction_of_budget',
  'best_validation',
  'budget_steps',
)


def trainings(options: argparse.Namespace) -> list[Training]:
  """All runs, seed by seed.

  Raises:
    InputError: a workload has no twin in JAX.
  """
  for name in options.workloads:
    if name not in twins.WORKLOADS:
      raise InputError(
        f'Invalid workloads={name!r}. Must be among '
        f'{", ".join(twins.WORKLOADS)}, which have a twin in JAX.'
      )
  return [
    Training(
      workload=workload,
      submission=submission + ('_jax' if framework == 'jax' else ''),
      point=tuned_point(workload)
      | ({'averaging_horizon': HORIZON} if 'ema' in submission else {}),
      seed=seed,
      follower=Shown,
      follows={'evaluated_from': EVALUATED_FROM},
      columns={'submission': submission, 'framework': framework},
    )
    for seed in options.seeds
    for workload in options.workloads
    for submission in SUBMISSIONS
    for framework in FRAMEWORKS
  ]


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of frameworks.json."""
  rows = frame.rows_of(results, {'candidate': SHOWN})
  return frame.select(rows, COLUMNS)


def table(rows: Sequence[Row]) -> str:
  """Make the table of steps to target in both frameworks, in Markdown.

  A cell has the median over seeds as a fraction of T, and the range.
  """
  data = frame.read(rows)
  lines = []
  for (workload, submission), group in data.groupby(['workload', 'submission']):
    line = [f'`{workload}`', f'`{submission}`']
    for framework in FRAMEWORKS:
      own = group[group['framework'] == framework]['fraction_of_budget']
      cells = [
        tables.number(value, missing=tables.NEVER)
        for value in (frame.median(own), own.min(), own.max())
      ]
      line.append(f'{cells[0]} ({cells[1]} to {cells[2]})')
    lines.append([*line, str(group['seed'].nunique())])
  header = ['workload', 'submission', 'PyTorch', 'JAX', 'seeds']
  return tables.markdown(header, lines)


STUDY = Study(
  folder='frameworks',
  seeds=(0, 1, 2, 3, 4),
  trainings=trainings,
  files={'frameworks.json': rows_of},
  tables={'Steps to target, as a fraction of T': ('frameworks.json', table)},
  workloads=twins.WORKLOADS,
  order=('workload', 'submission', 'seed', 'framework'),
  joins=BY_SEED,
)
