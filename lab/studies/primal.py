"""Averages that train beside averages that watch, on an equal budget.

Each method is trained at the point that its own search has found, on the same
number of trials (`tune`). Averages that watch follow the runs of NadamW and
Shampoo, which this study shares with `steps`: for each kind the point and the
average that won the search, and, as `<method>_best`, the one average that is
best over all workloads in hindsight at the raw weights' point. Methods that
train at their average are measured as their submission shows it. Without runs
of Shampoo here its rows come from those of `steps`, if NadamW's runs give the
same rows there.

A method that was not searched on a workload has the point of its base with the
submission's defaults; its rows say so.

Runs of some methods, on all workloads and seeds, leave the rows of the others
as long as the runs of NadamW that come with them give the rows of before. With
--keep_baseline NadamW is not trained, and they are compared with its committed
rows, which must come from the same arithmetic: a machine on which one seed of
NadamW gives its row. Levels need NadamW's curves and are left out then.

Writes primal.json (a row for each workload, method and seed), levels.json
(steps to the levels that NadamW's raw weights reach at 0.5 to 0.9 of T) and
primal.png. The documentation's tables are made from primal.json by `table`,
`final_metric` and `verdicts`, and from levels.json by `levels_table`.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from lab.core.errors import InputError
from lab.studies import steps
from lab.studies.parts import frame, levels, primal_tables, tuned
from lab.studies.parts.frame import Row
from lab.studies.parts.kept_rows import FOUND, Units
from lab.studies.parts.methods import METHODS
from lab.studies.parts.primal_tables import (
  final_metric,
  levels_table,
  table,
  verdicts,
)
from lab.studies.parts.shown import SHOWN, Shown
from lab.studies.parts.study import Option, Study
from lab.studies.parts.training import Result, Training, tuned_point
from lab.studies.parts.tuned import kind_of

__all__ = ['STUDY', 'final_metric', 'levels_table', 'table', 'verdicts']

BASELINE = 'nadamw'
# Of a kind that was not searched: the submissions' own.
DEFAULTS = {'lawa': 'lawa 1 %', 'ema': 'ema 1 %', 'polynomial': 'polynomial 4'}
COLUMNS = (
  'workload',
  'method',
  'seed',
  'steps_to_target',
  'ratio_to_nadamw',
  'best_validation',
  'budget_steps',
  'average',
  'searched',
  'higher_is_better',
  'target',
)


def runs(workload: str, method: str, seed: int) -> list[Training]:
  """Describe a seed's runs of a method, at its tuned points."""
  if not METHODS[method].shows_average:
    return steps.runs(workload, method, seed)
  return [
    Training(
      workload=workload,
      submission=method,
      point=tuned_point(workload, method),
      seed=seed,
      follower=Shown,
      follows={'evaluated_from': steps.EVALUATED_FROM},
      columns={'optimizer': method, 'tuned_for': SHOWN},
    )
  ]


def chosen(options: argparse.Namespace) -> list[str]:
  """Methods to run; NadamW, to which all are compared, is the first.

  Raises:
    InputError: its rows are kept, and it is among the methods.
  """
  if not options.keep_baseline:
    return list(dict.fromkeys((BASELINE, *options.methods)))
  if BASELINE in options.methods:
    raise InputError(
      f'Invalid keep_baseline with the method {BASELINE}, which it is about. '
      'Name the other methods to run.'
    )
  return list(options.methods)


def trainings(options: argparse.Namespace) -> list[Training]:
  """All runs, seed by seed."""
  return [
    run
    for seed in options.seeds
    for workload in options.workloads
    for method in chosen(options)
    for run in runs(workload, method, seed)
  ]


def _trainings_of_study(options: argparse.Namespace) -> list[Training]:
  """All runs.

  Raises:
    InputError: rows of levels.json would stay that are of other runs.
  """
  if options.keep_baseline:
    committed = STUDY.committed('levels.json') or []
    known = {row['method'] for row in committed} & {*options.methods}
    if known:
      raise InputError(
        f'Invalid keep_baseline with the method {min(known)}, which has rows '
        "in levels.json. New ones need NadamW's runs."
      )
  return trainings(options)


def is_searched(workload: str, method: str) -> bool:
  """Tell if a finished search of a method is committed."""
  return bool(tuned.winners(workload, method))


def notes(options: argparse.Namespace) -> list[str]:
  """Make a line for each method that was not searched on some workload."""
  lines = []
  for method in chosen(options):
    missing = [w for w in options.workloads if not is_searched(w, method)]
    if not missing:
      continue
    base = METHODS[method].base
    point = f"{base}'s with its own defaults" if base else 'a published one'
    lines.append(
      f'{method} is not searched yet on {", ".join(missing)}: its point is '
      f'{point}.'
    )
  return lines


def methods_of(
  row: Mapping[str, Any], single: Mapping[tuple[str, str], str] | None = None
) -> list[str]:
  """Names under which a run and its average are compared; none for most.

  Args:
    row: with optimizer, workload, candidate and the kind that the run's point
      is tuned for.
    single: the average that is best in hindsight, by optimizer and kind.
  """
  optimizer, name = row['optimizer'], row['candidate']
  if optimizer not in steps.OPTIMIZERS:
    return [optimizer]
  kind, tuned_for = kind_of(name), row['tuned_for']
  if kind == 'raw':
    return [optimizer] if tuned_for == 'raw' else []
  winner = tuned.winners(row['workload'], optimizer).get(kind)
  won = (kind, winner['average']) if winner else ('raw', DEFAULTS[kind])
  found = [f'{optimizer}_{kind}'] if (tuned_for, name) == won else []
  if tuned_for == 'raw' and name == (single or {}).get((optimizer, kind)):
    found.append(f'{optimizer}_{kind}_best')
  return found


def method_rows(
  results: Sequence[Result],
  single: Mapping[tuple[str, str], str] | None = None,
  baseline: Mapping[str, Any] | None = None,
  further: Sequence[Row] = (),
  kept: Sequence[Row] = (),
) -> list[Row]:
  """Rows of the compared methods with every column.

  Args:
    results: of finished runs.
    single: as in `methods_of`; found in the results if None.
    baseline: further columns of NadamW's rows, to which others are compared.
    further: rows of averages that watch other runs.
    kept: finished rows of NadamW, to which others are compared.
  """
  watched = [r for r in results if r['optimizer'] in steps.OPTIMIZERS]
  others = [r for r in results if r['optimizer'] not in steps.OPTIMIZERS]
  rows = frame.rows_of(
    [*steps.by_kind(watched), *others],
    {**steps.BASELINE, **(baseline or {})},
    kept=kept,
  )
  rows += further
  if single is None:
    single = steps.best_horizons(rows) if watched else {}
  found = [
    row
    | {
      'method': method,
      'average': row['candidate'],
      'searched': is_searched(row['workload'], row['optimizer']),
    }
    for row in rows
    for method in methods_of(row, single)
  ]
  return sorted([*found, *kept], key=primal_tables.place)


def kept_baseline(
  results: Sequence[Result],
  committed: Sequence[Row] | None,
  setting: Mapping[str, Any] | None = None,
) -> list[Row]:
  """Return committed rows of NadamW for runs that have none beside them.

  Args:
    results: of finished runs.
    committed: rows of a file, or None.
    setting: further columns of the rows to which others are compared.
  """
  there = {_key(r) for r in results if r['optimizer'] == BASELINE}
  needed = {_key(result) for result in results} - there
  wanted = {'method': BASELINE, **(setting or {})}
  return [
    row
    for row in committed or []
    if _key(row) in needed
    and all(row[name] == value for name, value in wanted.items())
  ]


def rows_of_steps(results: Sequence[Result]) -> list[Row]:
  """Return rows of `steps` of the optimizers that these runs lack.

  Their ratios are to NadamW's raw weights there. So there are none unless its
  rows are those of these runs, and none of an optimizer that lacks some of
  their workloads and seeds.
  """
  watched = [r for r in results if r['optimizer'] in steps.OPTIMIZERS]
  here = _baseline(frame.rows_of(steps.by_kind(watched), steps.BASELINE))
  kept = steps.STUDY.committed('study.json') or []
  there = _baseline(kept)
  if any(there.get(key) != values for key, values in here.items()):
    return []
  found = []
  for optimizer in steps.OPTIMIZERS:
    if optimizer in {result['optimizer'] for result in watched}:
      continue
    rows = [r for r in kept if r['optimizer'] == optimizer and _key(r) in here]
    if {_key(row) for row in rows} == {*here}:
      found += rows
  return found


def _key(row: Row) -> tuple[str, int]:
  return row['workload'], row['seed']


def _baseline(rows: Sequence[Row]) -> dict[tuple[str, int], list[Any]]:
  """Return what was found for NadamW's raw weights, by workload and seed."""
  return {
    _key(row): [row[name] for name in (*FOUND, 'target')]
    for row in rows
    if all(row[name] == value for name, value in steps.BASELINE.items())
  }


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of primal.json; ratios are to NadamW of the same seed."""
  kept = kept_baseline(results, STUDY.committed('primal.json'))
  rows = method_rows(results, further=rows_of_steps(results), kept=kept)
  return frame.select(rows, COLUMNS)


def levels_of(results: Sequence[Result]) -> list[Row]:
  """Rows of levels.json: ratios to NadamW's raw weights of the same seed."""
  rows = method_rows(results)
  by_run: dict[tuple[str, int], dict[str, Result]] = {}
  for result in results:
    # A run at the point of another kind has no level of its own.
    for kind in result['tuned_for'].split(', '):
      key = result['workload'], result['seed']
      by_run.setdefault(key, {})[f'{result["optimizer"]} {kind}'] = result
  found = []
  for (workload, seed), own in by_run.items():
    base = own.get(f'{BASELINE} raw')
    if base is None:
      continue
    curves = {
      row['method']: _values(
        own[f'{row["optimizer"]} {row["tuned_for"]}'], row['average']
      )
      for row in rows
      if (row['workload'], row['seed']) == (workload, seed)
    }
    ratios = levels.ratios(
      [step for step, *_ in base['curves']['raw']],
      {'raw': _values(base, 'raw'), **curves},
      base['budget_steps'],
      base['higher_is_better'],
    )
    found += [
      {
        'workload': workload,
        'seed': seed,
        'method': method,
        'fraction': fraction,
        'ratio': ratio,
      }
      for fraction, by_method in ratios.items()
      for method, ratio in by_method.items()
    ]
  return sorted(found, key=primal_tables.place)


def _values(result: Result, name: str) -> list[float]:
  return [value for *_, value in result['curves'][name]]


STUDY = Study(
  folder='primal',
  seeds=(0, 1, 2, 3, 4),
  trainings=_trainings_of_study,
  files={'primal.json': rows_of, 'levels.json': levels_of},
  tables={
    'Steps to target over those of NadamW': ('primal.json', table),
    'Best metric within T': ('primal.json', final_metric),
    'Numbers to reach': ('primal.json', verdicts),
    "At the levels of NadamW's raw weights": ('levels.json', levels_table),
  },
  figures={'primal.png': ('primal.json', primal_tables.draw)},
  options=(
    Option('methods', tuple(METHODS), 'methods; nadamw is always among them'),
  ),
  order=('workload', 'optimizer', 'seed', 'tuned_for'),
  switches={
    'keep_baseline': 'train no NadamW: compare with its committed rows; '
    'levels.json gets no rows'
  },
  # The average that is best in hindsight depends on all workloads and seeds.
  joins=Units(('method',), compared_with=({'method': BASELINE},)),
  place=primal_tables.place,
  shares='study',
  notes=notes,
)
