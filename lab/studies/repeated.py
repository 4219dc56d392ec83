"""The choice among averages where data repeat.

`auto` draws every batch anew, so that a probe is never trained on. Here a run
passes ten times over a tenth of its data, as most of the benchmark's do: a
probe has been trained on an epoch before, and will be again. Beside the
submission the same rule chooses with as many examples that are never trained
on. All runs go to their end. The target of each is the best value of its raw
weights, NadamW; a target from endless data would say nothing here.

Writes repeated.json, with rows as in auto.json. `table` makes the table of the
documentation from it.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from lab.core import curves
from lab.studies import auto
from lab.studies.parts import frame, tables
from lab.studies.parts.choice_tables import TUNED, Times, label_of
from lab.studies.parts.choosers import AUTO
from lab.studies.parts.frame import Row
from lab.studies.parts.study import Study
from lab.studies.parts.training import Result, Training
from weightavg.schemes.auto import DEFAULT_PROBE_MEMORY

EPOCHS = 10
FRESH = 'never trained on'
RULES = {FRESH: {'probe': 'fresh', 'memory': DEFAULT_PROBE_MEMORY}}


def trainings(options: argparse.Namespace) -> list[Training]:
  """Seed by seed, at the tuned learning rate with a cosine to zero."""
  runs = [
    auto.training(
      workload, seed, *TUNED, rules=RULES, to_target=False, to_the_end=True
    )
    for seed in options.seeds
    for workload in options.workloads
  ]
  return [
    dataclasses.replace(
      run, epochs=EPOCHS, columns={**run.columns, 'epochs': EPOCHS}
    )
    for run in runs
  ]


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of repeated.json, with the share of equal choices of both probes."""
  rows = []
  for result in results:
    raw = [curves.Point(int(s), *rest) for s, *rest in result['curves']['raw']]
    target = curves.best(raw, result['higher_is_better'])
    pairs = zip(result['choices'][AUTO], result['choices'][FRESH], strict=True)
    same = [own == fresh for own, fresh in pairs]
    more = {'target': target, 'same_choice': sum(same) / len(same)}
    rows += auto.all_rows_of([result | more])
  return frame.select(rows, (*auto.COLUMNS, 'epochs', 'same_choice'))


def table(rows: Sequence[Row]) -> str:
  """Markdown: fraction of T at which each is as good as NadamW at its best."""
  times = Times(rows)
  names = [*times.fixed, AUTO, FRESH]
  same = times.data.groupby('workload')['same_choice'].mean()
  lines = [
    [
      setting[0],
      times.seeds(setting),
      *(
        times.cell(setting, name) + times.share_of_raw(setting[0], name)
        for name in names
      ),
      f'{100 * same[setting[0]]:.0f} %',
    ]
    for setting in times.tuned
  ]
  header = ['workload', 'seeds', *map(label_of, names), 'same choice']
  return tables.markdown(header, lines)


STUDY = Study(
  folder='auto',
  seeds=(0, 1, 2, 3, 4),
  trainings=trainings,
  files={'repeated.json': rows_of},
  tables={'Where data repeat': ('repeated.json', table)},
)
