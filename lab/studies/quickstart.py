"""Compare two optimizers and their averages on one workload.

A small language model is trained by NadamW, by Shampoo and by NadamW with a
choice among averages. Several averages follow the first two runs: the default
horizon of 1 % of T and longer ones. A few minutes on two cores.

Writes summary.json (a row for each run and average), curves.json and
curves.png, the metric against steps, raw and averaged, which is also the figure
of the front page. `table` and `sentence` describe the rows of summary.json.
"""

import argparse
import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from lab.studies import auto
from lab.studies.parts import frame, plots, tables
from lab.studies.parts.averages import followed
from lab.studies.parts.choosers import AUTO
from lab.studies.parts.frame import Row
from lab.studies.parts.study import Study
from lab.studies.parts.training import Result, Training
from lab.workloads import build_workload

WORKLOAD = 'stdlib_lm'
CANDIDATES: dict[str, dict[str, Any]] = {
  'raw': {'averaging_scheme': 'none'},
  'lawa 1 %': {'averaging_scheme': 'lawa'},
  'lawa 10 %': {'averaging_scheme': 'lawa', 'averaging_horizon': 0.1},
  'ema 1 %': {'averaging_scheme': 'ema'},
  'ema 3 %': {'averaging_scheme': 'ema', 'averaging_horizon': 0.03},
  'polynomial 9': {'averaging_scheme': 'polynomial', 'averaging_power': 9.0},
}
# In the figure.
SHOWN = ('raw', 'ema 1 %', 'ema 3 %', 'lawa 10 %', AUTO)
LABELS = {'nadamw': 'NadamW', 'shampoo': 'Shampoo'}
BASELINE = {'optimizer': 'nadamw', 'candidate': 'raw'}
COLUMNS = (
  'workload',
  'optimizer',
  'candidate',
  'seed',
  'target',
  'steps_to_target',
  'seconds_to_target',
  'fraction_of_budget',
  'ratio_to_nadamw',
  'best_validation',
  'higher_is_better',
  'budget_steps',
)


def trainings(options: argparse.Namespace) -> list[Training]:
  """Three runs for each workload and seed; Shampoo, the longest, first."""
  runs = []
  for seed, workload in itertools.product(options.seeds, options.workloads):
    runs += [
      followed(workload, optimizer, seed, CANDIDATES)
      for optimizer in ('shampoo', 'nadamw')
    ]
    runs.append(
      auto.training(
        workload,
        seed,
        1.0,
        'cosine',
        rules={},
        evaluated_from=0.0,
        to_target=False,
        to_the_end=True,
      )
    )
  return runs


def curves_of(results: Sequence[Result]) -> list[Row]:
  """Rows of curves.json: the results, with one curve of the run that chooses.

  The raw weights of that run are NadamW's on other batches.
  """
  rows = []
  for result in results:
    result = {k: v for k, v in result.items() if k != 'choices'}
    if AUTO in result['curves']:
      result['optimizer'] = 'nadamw'
      result['curves'] = {AUTO: result['curves'][AUTO]}
    rows.append(result)
  return sorted(rows, key=lambda r: (r['workload'], r['optimizer'], r['seed']))


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of summary.json; ratios are to NadamW's raw weights."""
  return frame.select(frame.rows_of(curves_of(results), BASELINE), COLUMNS)


def label_of(optimizer: str, candidate: str) -> str:
  """Name of a method.

  >>> label_of('shampoo', 'raw'), label_of('nadamw', 'ema 1 %')
  ('Shampoo', 'NadamW, EMA 1 %')
  """
  name = candidate.replace('ema', 'EMA').replace('lawa', 'LAWA')
  return LABELS[optimizer] + ('' if candidate == 'raw' else f', {name}')


def _medians(rows: Sequence[Row]) -> Any:
  """Medians over seeds, a line for each workload and method, in order."""
  data = frame.read(rows)
  keys = ['workload', 'optimizer', 'candidate']
  times = ['steps_to_target', 'ratio_to_nadamw', 'seconds_to_target']
  times += ['fraction_of_budget', 'best_validation']
  return data.groupby(keys, sort=False)[times].agg(frame.median)


def table(rows: Sequence[Row]) -> str:
  """Markdown: medians over seeds of steps and seconds to the target."""
  lines = [
    [
      workload,
      label_of(optimizer, candidate),
      tables.number(line['steps_to_target'], 'g', tables.NEVER),
      tables.number(line['fraction_of_budget']),
      tables.number(line['ratio_to_nadamw']),
      tables.number(line['seconds_to_target'], '.1f'),
      f'{line["best_validation"]:.5f}',
    ]
    for (workload, optimizer, candidate), line in _medians(rows).iterrows()
  ]
  header = ['workload', 'method', 'steps to target', 'of T', 'of NadamW']
  header += ['seconds to target', 'best validation']
  return tables.markdown(header, lines)


def sentence(rows: Sequence[Row]) -> str:
  """Describe the table in a sentence for each workload."""
  medians = _medians(rows)
  texts = []
  for workload in dict.fromkeys(row['workload'] for row in rows):
    own = medians.loc[workload]
    seeds = len({r['seed'] for r in rows if r['workload'] == workload})
    steps = own['steps_to_target'].get(('nadamw', 'raw'), math.inf)
    if not math.isfinite(steps):
      texts.append(f'On {workload}, NadamW does not reach the target.')
      continue
    claims = []
    for optimizer in LABELS:
      ratios = own['ratio_to_nadamw'].loc[[optimizer]]
      averages = ratios.drop((optimizer, 'raw')).drop(
        (optimizer, AUTO), errors='ignore'
      )
      shown = {'raw': ratios[optimizer, 'raw']}
      for name in ('ema 1 %', averages.idxmin()[1], AUTO):
        if (optimizer, name) in ratios:
          shown[name] = ratios[optimizer, name]
      claims += [
        f'{label_of(optimizer, name)} '
        + (f'{ratio:.2f}' if math.isfinite(ratio) else 'more than all')
        for name, ratio in shown.items()
        if (optimizer, name) != ('nadamw', 'raw')
      ]
    number = f'{seeds} seed{"s" * (seeds > 1)}'
    texts.append(
      f'On {workload} (median of {number}), NadamW needs {steps:g} steps to '
      f'the target. Of these, the others need: {", ".join(claims)}.'
    )
  return '\n'.join(texts)


def draw(results: Sequence[Row], path: pathlib.Path) -> None:
  """Metric against steps of one run of each optimizer, raw and averaged."""
  first = results[0]
  run = (first['workload'], first['seed'])
  own = [r for r in results if (r['workload'], r['seed']) == run]
  with plots.panels(1, 2, 9, 3.6, sharey=True) as (figure, panels):
    for axes, (optimizer, label) in zip(panels[0], LABELS.items(), strict=True):
      curves: dict[str, Any] = {}
      for result in own:
        if result['optimizer'] == optimizer:
          curves |= result['curves']
      rows = frame.rows_of([{**first, 'curves': curves}], {})
      steps = {row['candidate']: row['steps_to_target'] for row in rows}
      for number, name in enumerate(name for name in SHOWN if name in curves):
        # The start of training would flatten all that follows.
        late = [p for p in curves[name] if p[0] >= 0.3 * first['budget_steps']]
        x, _, y = zip(*late, strict=True)
        color = 'black' if name == 'raw' else f'C{SHOWN.index(name) - 1}'
        text = label_of(optimizer, name).removeprefix(f'{label}, ')
        when = f'step {steps[name]}' if steps[name] else tables.NEVER
        axes.plot(x, y, color=color, label=f'{text}: {when}')
        if steps[name] in x:
          axes.plot(
            steps[name],
            y[x.index(steps[name])],
            plots.MARKERS[number],
            color=color,
            markerfacecolor='none',
            markersize=6 + number,
          )
      axes.axhline(first['target'], color='0.4', linestyle='--', linewidth=1)
      axes.set(title=label, xlabel='step')
      axes.legend(title='reaches the target at')
    metric = build_workload(first['workload']).target_metric_name
    better = 'higher' if first['higher_is_better'] else 'lower'
    panels[0][0].set_ylabel(f'validation {metric} ({better} is better)')
    figure.suptitle(f'{first["workload"]}, seed {first["seed"]}')
    plots.save(figure, path)


STUDY = Study(
  folder='quickstart',
  seeds=(0, 1),
  workloads=(WORKLOAD,),
  trainings=trainings,
  files={'summary.json': rows_of, 'curves.json': curves_of},
  tables={
    'Steps to target, median over seeds': ('summary.json', table),
    'Seen here': ('summary.json', sentence),
  },
  figures={'curves.png': ('curves.json', draw)},
)
