"""Steps to target of every average on every local workload.

One run is trained for each optimizer, workload and seed, and several averages
follow it. Shampoo, grafted from Adam, trains at NadamW's tuned point as it is.

Writes study.json (a row for each run and candidate) and ratios.png. `table`
makes the table of the documentation from these rows.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from lab.studies.parts import frame, plots, tables
from lab.studies.parts.averages import followed
from lab.studies.parts.frame import Row
from lab.studies.parts.study import Option, Study
from lab.studies.parts.training import Result, Training

OPTIMIZERS = ('nadamw', 'shampoo')

# The submissions at their defaults, and with a horizon of 10 % of the budget; a
# polynomial average's horizon is 1 / (gamma + 1) of the steps so far.
CANDIDATES: dict[str, dict[str, Any]] = {
  'raw': {'averaging_scheme': 'none'},
  'lawa 1 %': {'averaging_scheme': 'lawa'},
  'lawa 10 %': {'averaging_scheme': 'lawa', 'averaging_horizon': 0.1},
  'ema 1 %': {'averaging_scheme': 'ema'},
  'ema 10 %': {'averaging_scheme': 'ema', 'averaging_horizon': 0.1},
  'polynomial 4': {'averaging_scheme': 'polynomial'},
  'polynomial 9': {'averaging_scheme': 'polynomial', 'averaging_power': 9.0},
}
BASELINE = {'optimizer': 'nadamw', 'candidate': 'raw'}
COLUMNS = (
  'optimizer',
  'workload',
  'seed',
  'candidate',
  'target',
  'steps_to_target',
  'best_validation',
  'budget_steps',
  'ratio_to_nadamw',
)


def trainings(options: argparse.Namespace) -> list[Training]:
  """All runs, seed by seed."""
  return [
    followed(workload, optimizer, seed, CANDIDATES)
    for optimizer in options.optimizers
    for seed in options.seeds
    for workload in options.workloads
  ]


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of study.json; ratios are to NadamW's raw weights of the same seed."""
  return frame.select(frame.rows_of(results, BASELINE), COLUMNS)


def _nadamw_steps(rows: Any) -> str:
  """Median of NadamW's own steps, and its fraction of T."""
  steps = frame.median(rows['steps_to_target'])
  never = (rows['steps_to_target'] == float('inf')).sum()
  if steps == float('inf'):
    return f'not reached in {never} of {len(rows)}'
  return f'{steps:g} ({steps / rows["budget_steps"].iloc[0]:.2f})'


def table(rows: Sequence[Row]) -> str:
  """Markdown: NadamW's steps, and ratios to them by optimizer and workload."""
  data = frame.read(rows)
  plain = data[(data[[*BASELINE]] == [*BASELINE.values()]).all(axis=1)]
  lines = []
  for optimizer in OPTIMIZERS:
    own = data[data['optimizer'] == optimizer]
    groups = [*own.groupby('workload'), (None, own)] if len(own) else []
    for workload, group in groups:
      baseline = plain[plain['workload'] == workload]
      ratios = group.groupby('candidate')['ratio_to_nadamw'].agg(frame.median)
      lines.append(
        [
          workload or '**median of all runs**',
          _nadamw_steps(baseline) if len(baseline) else '',
          optimizer,
          *(tables.number(ratios.get(name)) for name in CANDIDATES),
        ]
      )
  header = ['workload', 'NadamW, steps (of T)', 'optimizer', *CANDIDATES]
  return tables.markdown(header, lines)


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """A panel for each optimizer: ratio of each average on each workload."""
  data = frame.read(rows)
  with plots.panels(1, len(OPTIMIZERS), 9, 3.2) as (figure, panels):
    for axes, optimizer in zip(panels[0], OPTIMIZERS, strict=True):
      ratios = (
        data[data['optimizer'] == optimizer]
        .groupby(['workload', 'candidate'])['ratio_to_nadamw']
        .agg(frame.median)
        .unstack('candidate')
        .reindex(columns=[*CANDIDATES])
      )
      plots.heat_map(axes, ratios, low=0.5, high=1.0)
      axes.set_title(f'{optimizer}: steps to target over those of NadamW')
    plots.save(figure, path)


STUDY = Study(
  folder='study',
  seeds=(0, 1, 2),
  trainings=trainings,
  files={'study.json': rows_of},
  tables={'Steps to target': ('study.json', table)},
  figures={'ratios.png': ('study.json', draw)},
  options=(Option('optimizers', OPTIMIZERS, 'optimizers'),),
  order=('optimizer', 'workload', 'seed'),
)
