"""Steps to target of every average on every local workload.

NadamW and Shampoo are trained at the points that `tune` has found: one for the
raw weights, and one for each kind of average where the search found another
best for it. Several averages follow each run. An optimizer that was not
searched on a workload is trained at NadamW's point.

Writes study.json (a row for each run and candidate), levels.json (steps to the
levels that the raw weights of a run reach at 0.5 to 0.9 of T) and ratios.png.
The documentation's tables are made from study.json by `table`, `equal_budget`
and `final_metric`, and from levels.json by `levels_table`.
"""

import argparse
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lab.studies.parts import frame, levels, plots, tables, tuned
from lab.studies.parts.averages import Averages
from lab.studies.parts.frame import Row
from lab.studies.parts.kept_rows import BY_SEED
from lab.studies.parts.study import Option, Study
from lab.studies.parts.training import Result, Training
from lab.studies.parts.tuned import CANDIDATES, KINDS, kind_of

OPTIMIZERS = ('nadamw', 'shampoo')
# In the table of averages: the submissions at their defaults (1 %, power 4),
# and longer ones.
SHOWN = (
  'raw',
  'lawa 1 %',
  'lawa 10 %',
  'ema 1 %',
  'ema 3 %',
  'ema 10 %',
  'polynomial 4',
  'polynomial 9',
  'polynomial 19',
)
# No average is at a target or at a level earlier; a row that says so is marked.
EVALUATED_FROM = 0.3
BASELINE = {'optimizer': 'nadamw', 'candidate': 'raw', 'tuned_for': 'raw'}
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
  'tuned_for',
  'higher_is_better',
  'at_first_evaluation',
)


def runs(workload: str, optimizer: str, seed: int) -> list[Training]:
  """Describe the runs of a seed, the one at the raw weights' point first.

  All averages follow that one, and those of its own kinds the others.
  """
  every = tuned.candidates_of(workload)
  return [
    Training(
      workload=workload,
      submission=optimizer,
      point=point,
      seed=seed,
      follower=Averages,
      follows={
        'candidates': {
          name: fields
          for name, fields in every.items()
          if 'raw' in kinds or kind_of(name) in ('raw', *kinds)
        },
        'evaluated_from': EVALUATED_FROM,
      },
      columns={'optimizer': optimizer, 'tuned_for': ', '.join(kinds)},
    )
    for point, kinds in tuned.kinds_by_point(workload, optimizer)
  ]


def trainings(options: argparse.Namespace) -> list[Training]:
  """All runs, seed by seed."""
  return [
    run
    for optimizer in options.optimizers
    for seed in options.seeds
    for workload in options.workloads
    for run in runs(workload, optimizer, seed)
  ]


def by_kind(results: Sequence[Result]) -> list[Result]:
  """Split runs by the kinds that their points are best for.

  A run at a point that is best for several kinds is one result for each.
  """
  return [
    result
    | {
      'tuned_for': kind,
      'curves': {
        name: curve
        for name, curve in result['curves'].items()
        if name in CANDIDATES and (kind == 'raw' or kind_of(name) == kind)
      },
    }
    for result in results
    for kind in result['tuned_for'].split(', ')
  ]


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of study.json; ratios are to NadamW's raw weights of the same seed."""
  return frame.select(frame.rows_of(by_kind(results), BASELINE), COLUMNS)


def levels_of(results: Sequence[Result]) -> list[Row]:
  """Rows of levels.json: ratios to the raw weights of the same run."""
  rows = []
  for result in results:
    if 'raw' not in result['tuned_for'].split(', '):
      continue
    names = [name for name in result['curves'] if name in CANDIDATES]
    found = levels.of_run(result, names)
    keys = ('optimizer', 'workload', 'seed', 'budget_steps')
    rows += [
      {key: result[key] for key in keys}
      | {'fraction': fraction, 'candidate': name, 'ratio': ratio}
      for fraction, by_name in found.items()
      for name, ratio in by_name.items()
    ]
  return rows


def _nadamw_steps(rows: Any) -> str:
  """Median of NadamW's own steps, and its fraction of T."""
  steps = frame.median(rows['steps_to_target'])
  never = (rows['steps_to_target'] == math.inf).sum()
  if steps == math.inf:
    return f'not reached in {never} of {len(rows)}'
  return f'{steps:g} ({steps / rows["budget_steps"].iloc[0]:.2f})'


def _groups(data: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
  """Optimizer, workload and their rows; then all workloads of the optimizer."""
  found = []
  for optimizer in OPTIMIZERS:
    own = data[data['optimizer'] == optimizer]
    found += [
      (optimizer, str(w), group) for w, group in own.groupby('workload')
    ]
    if len(own):
      found.append((optimizer, '**median of all runs**', own))
  return found


def _read(rows: Sequence[Row], tuned_for: str) -> pd.DataFrame:
  data = frame.read(rows)
  return data[data['tuned_for'] == tuned_for]


def _baseline(data: pd.DataFrame) -> pd.DataFrame:
  """NadamW's raw weights."""
  return data[(data[[*BASELINE]] == [*BASELINE.values()]).all(axis=1)]


def table(rows: Sequence[Row]) -> str:
  """Make the table of averages at the raw weights' point, in Markdown."""
  data = _read(rows, 'raw')
  plain = _baseline(data)
  lines = []
  for optimizer, workload, group in _groups(data):
    baseline = plain[plain['workload'] == workload]
    ratios = group.groupby('candidate')['ratio_to_nadamw'].agg(frame.median)
    lines.append(
      [
        workload,
        _nadamw_steps(baseline) if len(baseline) else '',
        optimizer,
        *(tables.number(ratios.get(name)) for name in SHOWN),
      ]
    )
  header = ['workload', 'NadamW, steps (of T)', 'optimizer', *SHOWN]
  return tables.markdown(header, lines)


def best_horizons(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
  """Find, by optimizer and kind, the average that is best over all workloads.

  That is the one with the lowest median over workloads of the median ratio
  over seeds, at the raw weights' point. Of equal ones the first row decides:
  rows are in the order of the candidates, the shortest horizon or the lowest
  power of a kind first.
  """
  data = _read(rows, 'raw')
  found = {}
  for optimizer, own in data.groupby('optimizer'):
    medians = _medians(own).agg(frame.median, axis=1)
    for kind, group in medians.groupby(medians.index.map(kind_of)):
      found[str(optimizer), str(kind)] = str(group.idxmin())
  return found


def equal_budget(rows: Sequence[Row]) -> str:
  """Make the table of methods that were tuned on the same trials.

  A kind of average has two columns: the single length that is best over all
  workloads, at the raw weights' point; and, at the point that won the kind's
  own search (the raw weights' where there was none), the length that is best on
  the workload in hindsight; of equal ones the first, as in `best_horizons`.
  """
  data = frame.read(rows)
  single = best_horizons(rows)
  kinds = [kind for kind in KINDS if kind != 'raw']
  lines = []
  for optimizer in OPTIMIZERS:
    at_raw, own = (
      {
        kind: _medians(
          data[
            (data['optimizer'] == optimizer)
            & (data['tuned_for'] == (kind if is_own else 'raw'))
            & (data['candidate'].map(kind_of) == kind)
          ]
        )
        for kind in KINDS
      }
      for is_own in (False, True)
    )
    for workload in at_raw['raw'].columns:
      line = [workload, optimizer]
      line.append(tables.number(at_raw['raw'][workload].min()))
      for kind in kinds:
        line += [
          tables.number(_at(at_raw[kind], workload, single[optimizer, kind])),
          _best(own[kind] if workload in own[kind] else at_raw[kind], workload),
        ]
      lines.append(line)
  header = ['workload', 'optimizer', 'raw']
  for kind in kinds:
    names = {single[o, kind] for o in OPTIMIZERS if (o, kind) in single}
    header += [' / '.join(sorted(names)) or kind, f'{kind}, best']
  return tables.markdown(header, lines)


def _medians(data: pd.DataFrame) -> pd.DataFrame:
  """Median ratio over seeds: a row an average, a column a workload."""
  ratios = data.groupby(['candidate', 'workload'], sort=False)[
    'ratio_to_nadamw'
  ].agg(frame.median)
  table = ratios.unstack('workload')
  return table.reindex(sorted(table.columns), axis=1)


def _at(medians: pd.DataFrame, workload: str, name: str) -> float:
  return float(medians.loc[name, workload])


def _best(medians: pd.DataFrame, workload: str) -> str:
  """Lowest ratio on a workload, and the average that has it."""
  if workload not in medians or not math.isfinite(medians[workload].min()):
    return tables.UNKNOWN
  name = medians[workload].idxmin()
  return f'{medians.loc[name, workload]:.2f} ({name})'


def final_metric(rows: Sequence[Row]) -> str:
  """Make the table of the best metric within T, as a gain over NadamW's.

  A gain is positive where the average is better, in units of the range of
  NadamW's own values over the seeds.
  """
  data = _read(rows, 'raw')
  plain = _baseline(data)
  gains, values, spread = frame.gains(data, plain)
  data = data.assign(gain=gains)
  lines = []
  for optimizer, workload, group in _groups(data):
    if workload not in spread:
      continue
    gains = group.groupby('candidate')['gain'].median()
    lines.append(
      [
        workload,
        f'{values[workload].median():.4g} (range {spread[workload]:.2g})',
        optimizer,
        *(tables.number(gains.get(name), '+.2f') for name in SHOWN),
      ]
    )
  header = ['workload', 'NadamW, median (range)', 'optimizer', *SHOWN]
  return tables.markdown(header, lines)


def levels_table(rows: Sequence[Row]) -> str:
  """Make the table of ratios at the levels of the raw weights, in Markdown."""
  data = frame.read(rows)
  lines = []
  for optimizer, workload, group in _groups(data):
    for name in SHOWN[1:]:
      own = group[group['candidate'] == name]
      medians = own.groupby('fraction')['ratio'].agg(frame.median)
      cells = [tables.number(medians.get(f)) for f in levels.FRACTIONS]
      lines.append([workload, optimizer, name, *cells])
  header = ['workload', 'optimizer', 'average']
  header += [f'raw at {fraction:g} T' for fraction in levels.FRACTIONS]
  return tables.markdown(header, lines)


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """A panel for each optimizer: ratio of each average on each workload."""
  data = _read(rows, 'raw')
  optimizers = [o for o in OPTIMIZERS if (data['optimizer'] == o).any()]
  width = 5.5 * len(optimizers)
  with plots.panels(1, len(optimizers), width, 3.4) as (figure, panels):
    for axes, optimizer in zip(panels[0], optimizers, strict=True):
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
  seeds=(0, 1, 2, 3, 4),
  trainings=trainings,
  files={'study.json': rows_of, 'levels.json': levels_of},
  tables={
    'Steps to target': ('study.json', table),
    'Methods tuned on the same trials': ('study.json', equal_budget),
    'Best metric within T': ('study.json', final_metric),
    'At the levels of the raw weights': ('levels.json', levels_table),
  },
  figures={'ratios.png': ('study.json', draw)},
  options=(Option('optimizers', OPTIMIZERS, 'optimizers'),),
  order=('optimizer', 'workload', 'seed', 'tuned_for'),
  joins=BY_SEED,
)
