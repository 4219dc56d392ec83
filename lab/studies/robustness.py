"""Measure the cost of a wrong learning rate and of a wrong T.

The points are those of `primal`, and one thing differs from its runs:

- learning rates: 1/4, 1/2, 2 and 4 times that of the point, the rest as it is;
- budgets: the run gets 1/2 or 2 times T, while the point is unchanged and the
  method still plans for T: its schedule, its warm-up and the horizons of its
  averages are those of T. At 1/2 T the run of T is read at its middle. At 2 T
  it continues behind the end of its schedule, which is a learning rate of zero
  after a cosine. Beside it runs the same point that is told the right T.
  Methods that know no T have one run for both.

Runs at T itself are shared with `primal`. Runs of some methods, changes,
workloads or seeds leave the other rows, as long as the runs at T that come with
them give the rows of before.

Writes robustness.json (a row for each method, setting, workload and seed) and
robustness.png to results/primal/. The documentation's tables are made from
robustness.json by `steps_table`, `rates_table` and `budgets_table`.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lab.studies import primal
from lab.studies.parts import primal_tables, robustness_tables
from lab.studies.parts.frame import Row, select
from lab.studies.parts.kept_rows import Units
from lab.studies.parts.methods import METHODS
from lab.studies.parts.primal_tables import FREE
from lab.studies.parts.robustness_tables import (
  budgets_table,
  rates_table,
  steps_table,
)
from lab.studies.parts.study import Option, Study
from lab.studies.parts.training import Result, Training
from weightavg.schemes.base import DEFAULT_EVERY

__all__ = ['STUDY', 'budgets_table', 'rates_table', 'steps_table']

RATES = (0.25, 0.5, 2.0, 4.0)
HALF, DOUBLE = 0.5, 2.0
CHANGES = ('learning_rate', 'budget')
# Multiples of the point's learning rate, of T, and of the planned T.
SETTING = {'rate': 1.0, 'budget': 1.0, 'planned': 1.0}
COLUMNS = ('rate', 'budget', 'planned', *primal.COLUMNS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Misled(Training):
  """A run whose submission plans for the step hint but gets other steps.

  Args:
    lasts: steps of the run, as a multiple of the step hint.
  """

  lasts: float

  def steps_of(self, workload: Any) -> int:
    """Steps of the run on the workload that `build` has made."""
    return round(self.lasts * workload.step_hint)


def _compared(run: Training, lasts: float = 1.0) -> dict[str, dict[str, Any]]:
  """The averages of a run that are compared, as long as in a run of T steps.

  Args:
    run: at T.
    lasts: steps of the new run, of which fractions are taken, over T.
  """
  kinds = run.columns['tuned_for'].split(', ')
  found = {}
  for name, fields in run.follows['candidates'].items():
    row = {
      'optimizer': run.submission,
      'workload': run.workload,
      'candidate': name,
    }
    if not any(primal.methods_of(row | {'tuned_for': k}) for k in kinds):
      continue
    found[name] = dict(fields)
    if fields['averaging_scheme'] == 'none':
      continue
    found[name]['averaging_every'] = (
      fields.get('averaging_every', DEFAULT_EVERY) / lasts
    )
    if 'averaging_horizon' in fields:
      found[name]['averaging_horizon'] = fields['averaging_horizon'] / lasts
  return found


def _changed(
  run: Training, setting: Mapping[str, float], **changes: Any
) -> Training:
  """A run with other columns, that only the compared averages follow."""
  kind = type(run)
  lasts = changes.get('lasts')
  follows = dict(run.follows)
  if 'candidates' in follows:
    follows['candidates'] = _compared(run, lasts or 1.0)
  fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(kind)}
  fields |= {
    'follows': follows,
    'columns': {**run.columns, **SETTING, **setting},
    **changes,
  }
  return Training(**fields) if lasts is None else Misled(**fields)


def variants(run: Training, changes: Sequence[str]) -> list[Training]:
  """Describe the runs beside one at T; the last of a budget is the right T."""
  found = []
  if 'learning_rate' in changes:
    rate = run.point['learning_rate']
    found += [
      _changed(
        run,
        {'rate': factor},
        point={**run.point, 'learning_rate': factor * rate},
      )
      for factor in RATES
    ]
  if 'budget' in changes:
    found.append(_changed(run, {'budget': DOUBLE}, lasts=DOUBLE))
    if run.submission not in FREE:
      found += [
        _changed(run, {'budget': f, 'planned': f}, budget_factor=f)
        for f in (HALF, DOUBLE)
      ]
  return found


def trainings(options: argparse.Namespace) -> list[Training]:
  """All runs; those at T first."""
  at_budget = primal.trainings(options)
  return at_budget + [
    run
    for base in at_budget
    if base.submission in options.methods
    for run in variants(base, options.changes)
  ]


def _cut(result: Result) -> Result:
  """The first half of a run."""
  budget = round(HALF * result['budget_steps'])
  return result | {
    'budget': HALF,
    'budget_steps': budget,
    'curves': {
      name: [point for point in curve if point[0] <= budget]
      for name, curve in result['curves'].items()
    },
  }


def _settings(result: Result) -> list[Result]:
  """A run under each setting that it is the run of."""
  found = [SETTING | result]
  if 'budget' not in result:
    found.append(_cut(found[0]))
  if result['optimizer'] in FREE:
    # The same run, told or not.
    found += [
      one | {'planned': one['budget']} for one in found if one['budget'] != 1.0
    ]
  return found


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of robustness.json; ratios are to NadamW's raw weights at T."""
  found = [one for result in results for one in _settings(result)]
  committed = STUDY.committed('robustness.json')
  kept = primal.kept_baseline(found, committed, SETTING)
  rows = primal.method_rows(found, {}, SETTING, kept=kept)
  return sorted(select(rows, COLUMNS), key=place)


def place(row: Row) -> tuple[Any, ...]:
  """Return the key by which rows are sorted."""
  return (*primal_tables.place(row), *(row[name] for name in SETTING))


STUDY = Study(
  folder='primal',
  seeds=(0,),
  trainings=trainings,
  files={'robustness.json': rows_of},
  tables={
    'Steps to target over those of NadamW at its own rate': (
      'robustness.json',
      steps_table,
    ),
    'Best metric lost by another learning rate': (
      'robustness.json',
      rates_table,
    ),
    'Best metric lost by other budgets': ('robustness.json', budgets_table),
  },
  figures={'robustness.png': ('robustness.json', robustness_tables.draw)},
  options=(
    Option('methods', tuple(METHODS), 'methods'),
    Option('changes', CHANGES, 'what differs'),
  ),
  order=('workload', 'optimizer', 'seed', 'tuned_for', 'budget_steps'),
  switches=primal.STUDY.switches,
  # Ratios are to NadamW at T, losses to the same method at T.
  joins=Units(
    ('workload', 'seed', *SETTING, 'method'),
    compared_with=({'method': primal.BASELINE, **SETTING}, SETTING),
  ),
  place=place,
  shares='study',
  notes=primal.notes,
)
