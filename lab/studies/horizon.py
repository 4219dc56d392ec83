"""Which horizon reaches the target first, for LAWA and EMA.

NadamW is trained once for each workload and seed, with averages of several
horizons: the runs of `steps` at the raw weights' point. Where the model has
BatchNorm, averages with the live model's running statistics follow it, too.

Writes horizon.json (a row for each run, scheme and horizon) and horizon.png.
`table` makes the documentation's table of the default and the best horizon,
`statistics_table` that of averaged and live running statistics.
"""

import argparse
import math
import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lab.studies import steps
from lab.studies.parts import frame, plots, tables, tuned
from lab.studies.parts.frame import Row
from lab.studies.parts.study import Study
from lab.studies.parts.training import Result, Training
from weightavg.schemes.base import DEFAULT_HORIZON

SCHEMES = ('lawa', 'ema')
GRID = tuned.HORIZONS
COLUMNS = (
  'workload',
  'seed',
  'scheme',
  'horizon',
  'every',
  'batch_norm',
  'steps_to_target',
  'ratio_to_nadamw',
  'fraction_of_budget',
  'at_first_evaluation',
)


def trainings(options: argparse.Namespace) -> list[Training]:
  """All runs, seed by seed."""
  return [
    steps.runs(workload, 'nadamw', seed)[0]
    for seed in options.seeds
    for workload in options.workloads
  ]


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of horizon.json; NadamW's own has the scheme 'none', no horizon."""
  rows = []
  for row in frame.rows_of(results, {'candidate': 'raw'}):
    name = row['candidate'].removesuffix(f' {tuned.CURRENT}')
    fields = tuned.CANDIDATES[name]
    if fields['averaging_scheme'] not in ('none', *SCHEMES):
      continue
    rows.append(
      row
      | {
        'scheme': fields['averaging_scheme'],
        'horizon': fields.get('averaging_horizon'),
        'every': fields.get('averaging_every'),
        'batch_norm': None if name == row['candidate'] else tuned.CURRENT,
      }
    )
  return frame.select(rows, COLUMNS)


def fit(data: pd.DataFrame, column: str) -> np.ndarray | None:
  """Second-order polynomial in log10 of the horizon; None below 3 horizons."""
  known = data[np.isfinite(data[column])]
  if known['horizon'].nunique() < 3:
    return None
  return np.polyfit(np.log10(known['horizon']), known[column], 2)


def fitted_best(coefficients: np.ndarray | None) -> float | None:
  """Horizon at the fit's minimum; None where it has none inside the grid."""
  if coefficients is None or coefficients[0] <= 0:
    return None
  best = float(10 ** (-coefficients[1] / (2 * coefficients[0])))
  return best if min(GRID) <= best <= max(GRID) else None


def _medians(data: pd.DataFrame) -> pd.Series:
  """Median ratio at each horizon of the grid; infinite where not measured."""
  ratios = data.groupby('horizon')['ratio_to_nadamw'].agg(frame.median)
  return ratios.reindex([*GRID], fill_value=math.inf)


def _by_default(rows: Sequence[Row]) -> pd.DataFrame:
  """Without the averages that leave running statistics alone."""
  data = frame.read(rows)
  return data[data['batch_norm'].isna()]


def table(rows: Sequence[Row]) -> str:
  """Markdown: the default and the best horizon side by side."""
  lines = []
  for workload, group in _by_default(rows).groupby('workload'):
    for scheme in SCHEMES:
      own = group[group['scheme'] == scheme]
      # Of equal ratios the shortest horizon.
      ratios = _medians(own)
      best = ratios.idxmin()
      bottom = fitted_best(fit(own, 'ratio_to_nadamw'))
      lines.append(
        [
          workload,
          scheme,
          tables.number(ratios[DEFAULT_HORIZON]),
          tables.number(ratios[best]),
          tables.percent(best) if math.isfinite(ratios[best]) else '–',
          'none inside' if bottom is None else f'{100 * bottom:.1f} %',
        ]
      )
  header = ['workload', 'scheme', f'ratio at {tables.percent(DEFAULT_HORIZON)}']
  header += ['best ratio', 'best horizon', "fit's minimum"]
  return tables.markdown(header, lines)


def statistics_table(rows: Sequence[Row]) -> str:
  """Markdown: ratios with and without averaged running statistics."""
  data = frame.read(rows)
  current = data['batch_norm'] == tuned.CURRENT
  lines = []
  for workload in sorted(set(data[current]['workload'])):
    for scheme in SCHEMES:
      own = data[(data['workload'] == workload) & (data['scheme'] == scheme)]
      for how, chosen in (('averaged', ~current), ('current', current)):
        ratios = _medians(own[chosen[own.index]])
        lines.append([workload, scheme, how, *map(tables.number, ratios)])
  header = ['workload', 'scheme', 'running statistics']
  return tables.markdown([*header, *map(tables.percent, GRID)], lines)


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """A panel for each workload: runs as dots, fits as lines, NadamW dashed."""
  data = _by_default(rows)
  names = sorted(set(data['workload']))
  grid = np.geomspace(min(GRID), max(GRID), 100)
  with plots.panels(1, len(names), 3.4 * len(names), 3.2) as (figure, panels):
    for axes, workload in zip(panels[0], names, strict=True):
      group = data[data['workload'] == workload]
      for number, scheme in enumerate(SCHEMES):
        own = group[group['scheme'] == scheme]
        known = own[np.isfinite(own['fraction_of_budget'])]
        axes.plot(
          known['horizon'],
          known['fraction_of_budget'],
          plots.MARKERS[number],
          color=f'C{number}',
          markerfacecolor='none',
          label=scheme.upper(),
        )
        curve = fit(own, 'fraction_of_budget')
        if curve is not None:
          axes.plot(grid, np.polyval(curve, np.log10(grid)), color=f'C{number}')
      plain = group[group['scheme'] == 'none']
      nadamw = frame.median(plain['fraction_of_budget'])
      if math.isfinite(nadamw):
        axes.axhline(nadamw, color='black', linestyle='--', label='NadamW')
      axes.axvline(DEFAULT_HORIZON, color='gray', linewidth=0.5)
      axes.set(xscale='log', title=workload, xlabel='horizon, fraction of T')
    panels[0][0].set_ylabel('steps to target, fraction of T')
    panels[0][0].legend()
    plots.save(figure, path)


STUDY = Study(
  folder='horizon',
  seeds=(0, 1, 2, 3, 4),
  trainings=trainings,
  files={'horizon.json': rows_of},
  tables={
    'Default and best horizon': ('horizon.json', table),
    'Running statistics of BatchNorm': ('horizon.json', statistics_table),
  },
  figures={'horizon.png': ('horizon.json', draw)},
  shares='study',
)
