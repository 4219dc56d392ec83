"""When averaging pays: against momentum, learning rate and the target's place.

A trial of a search that was trained to its end is a run of the raw weights at
its own point, and the averages that followed it. Every loss level of the run is
a possible target; the gain of an average is its steps to a level as a multiple
of the raw weights' steps. The trials give that gain against the memory of the
momentum, 1 / (1 - beta1) steps, as a fraction of T, and against the learning
rate. The runs of `steps` give it against the level's place in the schedule, and
runs of one workload that are four times as long show if the length matters.
--workloads and --seeds choose the long ones.

Writes trials.json (a row for each trial and level), long.json (ratios of the
long runs, as levels.json of `steps`), places.json (a row for each run and
average, with a ratio for every level) and gains.png.
"""

import argparse
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lab.core import logs
from lab.studies import steps
from lab.studies.parts import frame, levels, plots, tables, tuned
from lab.studies.parts.averages import Averages
from lab.studies.parts.frame import Row
from lab.studies.parts.study import Study
from lab.studies.parts.training import Result, Training, tuned_point
from lab.workloads import WORKLOADS, build_workload

METHOD = 'nadamw'
LONG_WORKLOAD, LONG_FACTOR = 'stdlib_lm', 4
# In figures and tables: the default and the longest horizon that is not too
# long for any workload.
SHOWN = ('ema 1 %', 'ema 5 %', 'lawa 1 %', 'lawa 10 %')
FRACTION = 0.8
# Evaluations from 0.4 T on: the first one, at 0.3 T, bounds what is measured.
PLACES = tuple(round(0.02 * n, 2) for n in range(20, 51))


def trainings(options: argparse.Namespace) -> list[Training]:
  """The runs of `steps`, then long ones; trials are in committed searches."""
  usual = [
    steps.runs(workload, METHOD, seed)[0]
    for seed in steps.STUDY.seeds
    for workload in steps.STUDY.workloads
  ]
  return usual + [
    Training(
      workload=workload,
      submission=METHOD,
      point=tuned_point(workload),
      seed=seed,
      follower=Averages,
      follows={
        'candidates': tuned.CANDIDATES,
        'evaluated_from': steps.EVALUATED_FROM,
      },
      columns={'optimizer': METHOD, 'tuned_for': 'raw'},
      budget_factor=LONG_FACTOR,
      needs_target=False,
    )
    for seed in options.seeds
    for workload in options.workloads
  ]


def length_of(result: Result) -> int:
  """Return the length of a run in step hints."""
  hint = build_workload(result['workload']).step_hint
  return round(result['budget_steps'] / hint)


def long_of(results: Sequence[Result]) -> list[Row]:
  """Rows of long.json."""
  return steps.levels_of([r for r in results if length_of(r) > 1])


def places_of(results: Sequence[Result]) -> list[Row]:
  """Rows of places.json: for each run and average a ratio by level's place."""
  rows = []
  for result in results:
    found = levels.of_run(result, ('raw', *SHOWN), PLACES)
    length = length_of(result)
    rows += [
      {
        'workload': result['workload'],
        'seed': result['seed'],
        'length': length,
        'candidate': name,
        'places': list(found),
        'ratios': [by_name[name] for by_name in found.values()],
      }
      for name in SHOWN
    ]
  return rows


def trial_rows(
  record: Mapping[str, Any], trials: Iterable[Mapping[str, Any]]
) -> list[Row]:
  """Make the rows of a search.

  Args:
    record: content of its search.json.
    trials: content of its trials.json; one that was stopped is left out.
  """
  rows = []
  for trial in trials:
    if trial['stopped'] is not None:
      continue
    found = levels.ratios(
      trial['steps'],
      trial['curves'],
      trial['budget_steps'],
      record['higher_is_better'],
    )
    rows += [
      {
        'workload': record['workload'],
        'trial': trial['trial'],
        'learning_rate': trial['point']['learning_rate'],
        'memory': 1.0
        / (trial['point']['one_minus_beta1'] * trial['budget_steps']),
        'best': trial['best']['raw'],
        'fraction': fraction,
        'ratios': ratios,
      }
      for fraction, ratios in found.items()
    ]
  return rows


def trials_of(results: Sequence[Result]) -> list[Row]:
  """Rows of trials.json, from the committed searches."""
  del results
  rows = []
  for workload in sorted(WORKLOADS):
    folder = tuned.folder(workload, METHOD)
    record = logs.read_json(str(folder / 'search.json'))
    trials = logs.read_json(str(folder / 'trials.json'))
    if record is not None and trials is not None:
      rows += trial_rows(record, trials)
  return rows


def _frame(rows: Iterable[Row], fraction: float) -> pd.DataFrame:
  """A row for each trial, a column for each average; infinite where never."""
  lines = [
    {key: row[key] for key in ('workload', 'learning_rate', 'memory', 'best')}
    | {n: math.inf if v is None else v for n, v in row['ratios'].items()}
    for row in rows
    if row['fraction'] == fraction
  ]
  return pd.DataFrame(lines)


def table(rows: Sequence[Row]) -> str:
  """Make the table of rank correlations over the trials of each search.

  Spearman's rho of an average's ratio with the momentum's memory and with the
  learning rate, at the level that the raw weights reach at 0.8 T; the p-value
  is in brackets. Below 0: the ratio falls, the gain grows.
  """
  data = _frame(rows, FRACTION)
  lines = []
  for workload, group in data.groupby('workload'):
    for name in SHOWN:
      line = [str(workload), str(len(group)), name]
      line.append(tables.number(frame.median(group[name])))
      for column in ('memory', 'learning_rate'):
        rho, p = stats.spearmanr(group[column], group[name])
        line.append(f'{rho:+.2f} ({p:.2g})' if math.isfinite(rho) else '–')
      lines.append(line)
  header = ['workload', 'trials', 'average', 'median ratio']
  header += ["rho with the momentum's memory", 'rho with the learning rate']
  return tables.markdown(header, lines)


def long_table(rows: Sequence[Row]) -> str:
  """Make the table of ratios by length of the run and place of the level."""
  usual = frame.read(steps.STUDY.committed('levels.json'))
  usual = usual[
    (usual['workload'] == LONG_WORKLOAD) & (usual['optimizer'] == METHOD)
  ]
  lines = []
  for times, data in ((1, usual), (LONG_FACTOR, frame.read(rows))):
    for name in SHOWN:
      own = data[data['candidate'] == name]
      medians = own.groupby('fraction')['ratio'].agg(frame.median)
      cells = [tables.number(medians.get(f)) for f in levels.FRACTIONS]
      seeds = str(own['seed'].nunique())
      lines.append([f'{times} T', seeds, name, *cells])
  header = ['length', 'seeds', 'average']
  header += [f'raw at {fraction:g}' for fraction in levels.FRACTIONS]
  return tables.markdown(header, lines)


def _by_place(rows: Sequence[Row]) -> pd.DataFrame:
  """Compute medians over seeds; infinite where half or more never arrive."""
  keys = ['workload', 'length', 'candidate', 'place']
  lines = [
    (row['workload'], row['length'], row['candidate'], place, ratio)
    for row in rows
    for place, ratio in zip(row['places'], row['ratios'], strict=True)
  ]
  data = pd.DataFrame(lines, columns=[*keys, 'ratio'])
  ratio = data['ratio'].astype(float).fillna(math.inf)
  grouped = data.assign(ratio=ratio).groupby(keys)['ratio']
  return grouped.agg(frame.median).reset_index()


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """Draw ratios of trials by memory and rate, and ratios by the level's place.

  An average that never arrives is a filled marker at the top. A dashed line is
  that of the long runs. A ratio below the dotted one would need an evaluation
  before the first one.
  """
  data = _frame(rows, FRACTION)
  curves = _by_place(logs.read_json(str(path.with_name('places.json'))))
  shown = ('ema 5 %', 'lawa 10 %')
  top = 0.03 + data[[*shown]].replace(math.inf, math.nan).max(axis=None)
  with plots.panels(len(shown), 3, 11, 6.4, sharey=True) as (figure, panels):
    for row, name in enumerate(shown):
      for number, (workload, group) in enumerate(data.groupby('workload')):
        style = {
          'marker': plots.MARKERS[number],
          'color': f'C{number}',
          'markerfacecolor': 'none',
          'label': workload,
        }
        for axes, column in zip(
          panels[row], ('memory', 'learning_rate'), strict=False
        ):
          arrives = np.isfinite(group[name])
          known, never = group[arrives], group[~arrives]
          axes.plot(known[column], known[name], linestyle='', **style)
          filled = style | {'markerfacecolor': f'C{number}', 'label': None}
          at_top = [top] * len(never)
          axes.plot(never[column], at_top, linestyle='', **filled)
        own = curves[
          (curves['workload'] == workload) & (curves['candidate'] == name)
        ]
        for length, line in ((1, '-'), (LONG_FACTOR, '--')):
          part = own[own['length'] == length]
          panels[row][2].plot(
            part['place'],
            part['ratio'].replace(math.inf, math.nan),
            **style | {'linestyle': line, 'marker': ''},
          )
      panels[row][0].set(
        xscale='log', xlabel="momentum's memory, fraction of T",
        ylabel=f'{name}: steps over raw',
      )  # fmt: skip
      panels[row][1].set(xscale='log', xlabel='learning rate')
      for axes in panels[row][:2]:
        # Between 0.001 and 0.05 they would overlap.
        axes.tick_params(axis='x', which='minor', labelbottom=False)
      panels[row][2].set(xlabel='place of the level, fraction of T')
      panels[row][2].plot(
        PLACES,
        [steps.EVALUATED_FROM / place for place in PLACES],
        color='gray',
        linestyle=':',
      )
      panels[row][2].set_ylim(bottom=0.45)
      for axes in panels[row]:
        axes.axhline(1.0, color='black', linewidth=0.5)
    plots.legend_above(figure, panels[0][0], 4)
    plots.save(figure, path)


STUDY = Study(
  folder='gains',
  seeds=(0, 1, 2),
  trainings=trainings,
  files={
    'long.json': long_of,
    'places.json': places_of,
    'trials.json': trials_of,
  },
  tables={
    'Trials of the searches': ('trials.json', table),
    'Length of the run': ('long.json', long_table),
  },
  figures={'gains.png': ('trials.json', draw)},
  workloads=(LONG_WORKLOAD,),
  shares='study',
)
