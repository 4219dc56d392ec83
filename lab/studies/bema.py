"""Measure averages that are corrected for their lag: BEMA and a moving one.

Along runs of NadamW at its tuned point EMAs of several lengths are measured as
they are, corrected by a fraction of their lag, and as BEMA (Block and Zhang
2025, arXiv 2508.00180) corrects them (`lab.studies.parts.corrected`).

Writes bema.json (a row for each run and candidate) to results/horizon/.
"""

import argparse
from collections.abc import Sequence

from lab.studies import steps
from lab.studies.parts import frame, tables, tuned
from lab.studies.parts.corrected import Corrected, bema, corrected
from lab.studies.parts.frame import Row
from lab.studies.parts.kept_rows import BY_SEED
from lab.studies.parts.study import Study
from lab.studies.parts.training import Result, Training, tuned_point

EMAS = ('ema 1 %', 'ema 3 %', 'ema 10 %')
# The statistics of BatchNorm are the same for all: those of the raw weights.
CANDIDATES = {'raw': tuned.CANDIDATES['raw']} | {
  name: tuned.CANDIDATES[name] | {'averaging_batch_norm': tuned.CURRENT}
  for name in EMAS
}
# Behind the raw weights, fractions of T: an EMA of N samples is N - 1 behind.
LAGS = {
  name: CANDIDATES[name]['averaging_horizon']
  - CANDIDATES[name]['averaging_every']
  for name in EMAS
}
FACTORS = (0.25, 1.0)
ETAS = (0.2, 0.4)
SHOWN = (
  'raw',
  *(
    name
    for ema in EMAS
    for name in (ema, *(corrected(ema, factor) for factor in FACTORS))
  ),
  *map(bema, ETAS),
)
FRACTIONS = (0.4, 0.6, 0.8, 1.0)
COLUMNS = (
  'workload',
  'seed',
  'candidate',
  'target',
  'steps_to_target',
  'ratio_to_nadamw',
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
      submission='nadamw',
      point=tuned_point(workload),
      seed=seed,
      follower=Corrected,
      follows={
        'candidates': CANDIDATES,
        'lags': LAGS,
        'factors': FACTORS,
        'etas': ETAS,
        'evaluated_from': steps.EVALUATED_FROM,
      },
    )
    for seed in options.seeds
    for workload in options.workloads
  ]


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of bema.json; ratios are to the raw weights of the same run."""
  rows = frame.rows_at(results, {'candidate': 'raw'}, FRACTIONS)
  return frame.select(rows, COLUMNS)


def table(rows: Sequence[Row]) -> str:
  """Make the table of medians over seeds, of metrics and of steps to target."""
  data = frame.read(rows)
  lines = []
  for workload, group in data.groupby('workload'):
    for candidate in SHOWN:
      own = group[group['candidate'] == candidate]
      medians = frame.medians_at(own, FRACTIONS)
      cells = [tables.number(median, '.4f') for median in medians]
      ratio = tables.number(frame.median(own['ratio_to_nadamw']))
      lines.append([str(workload), candidate, *cells, ratio])
  at = frame.at_names(FRACTIONS)
  header = ['workload', 'average', *at, 'steps to target over raw']
  return tables.markdown(header, lines)


STUDY = Study(
  folder='horizon',
  seeds=(0, 1, 2),
  trainings=trainings,
  files={'bema.json': rows_of},
  tables={'Averages corrected for their lag': ('bema.json', table)},
  workloads=('denoise_unet', 'stdlib_lm'),
  joins=BY_SEED,
)
