"""The choice among averages on seeds that were not looked at.

Two defaults of the choice were set by looking at the runs of `auto`: the memory
of its probes and averaged running statistics. These runs have other seeds.

Writes unseen.json, with rows as in auto.json; the tables of `auto` read it.
"""

import dataclasses

from lab.studies import auto
from lab.studies.parts.study import Option

STUDY = dataclasses.replace(
  auto.STUDY,
  seeds=(5, 6, 7),
  workloads=('stdlib_lm',),
  files={'unseen.json': auto.rows_of},
  tables={
    title: ('unseen.json', table)
    for title, (_, table) in auto.STUDY.tables.items()
  },
  figures={},
  options=(
    Option('schedules', ('cosine_to_half', 'constant'), 'of the learning rate'),
    Option(
      'learning_rate_factors',
      (0.5, 1.0),
      'multiples of the tuned learning rate',
    ),
  ),
)
