"""The choice among averages: is it as good as the best average in hindsight?

`nadamw_auto` is trained once for each workload, seed, learning rate and
schedule; each evaluation measures every candidate and notes which one the
submission has chosen. Other rules choose beside it, from other probes and with
other memories. The raw weights of a run are NadamW on the same batches.

Writes auto.json (a row for each run and candidate), choices.json (a row for
each run), auto.png and choices.png. The documentation's tables are made from
auto.json by `extent`, `verdicts`, `steps`, `gaps` and `ablation`.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from lab.studies.parts import choice_figures, choice_tables, frame
from lab.studies.parts.choice_tables import (
  ablation,
  extent,
  gaps,
  steps,
  verdicts,
)
from lab.studies.parts.choosers import AUTO, Choosers
from lab.studies.parts.frame import Row
from lab.studies.parts.study import Option, Study
from lab.studies.parts.training import Result, Training, tuned_point

__all__ = ['STUDY', 'ablation', 'extent', 'gaps', 'steps', 'verdicts']

LEARNING_RATE_FACTORS = (1.0, 0.5, 2.0)
SCHEDULES = ('cosine', 'cosine_to_half', 'constant')
# No average is at a target earlier; a row that says so is marked.
EVALUATED_FROM = 0.5

RULES: dict[str, dict[str, Any]] = {
  'auto, memory 0': {'probe': 'own', 'memory': 0.0},
  'auto, memory 0.5': {'probe': 'own', 'memory': 0.5},
  'auto, memory 0.9': {'probe': 'own', 'memory': 0.9},
  '1 batch, memory 0': {'probe': 'batch', 'memory': 0.0},
  '1 batch, memory 0.75': {'probe': 'batch', 'memory': 0.75},
}
# At the tuned learning rate with a cosine to zero only.
FURTHER_RULES: dict[str, dict[str, Any]] = {
  '4 batches, memory 0': {'probe': 'four batches', 'memory': 0.0},
  '1 batch trained on, memory 0': {'probe': 'trained on', 'memory': 0.0},
}
COLUMNS = (
  'workload',
  'seed',
  'learning_rate_factor',
  'schedule',
  'candidate',
  'steps_to_target',
  'ratio_to_nadamw',
  'budget_steps',
  'target',
  'reached_at_first_look',
  'evaluated_every',
  'share_of_raw',
)


def training(
  workload: str, seed: int, factor: float, schedule: str, **options: Any
) -> Training:
  """A run of the submission; `options` are those of `Choosers`."""
  point = tuned_point(workload) | {'schedule': schedule}
  point['learning_rate'] *= factor
  return Training(
    workload=workload,
    submission='nadamw_auto',
    point=point,
    seed=seed,
    follower=Choosers,
    follows={'evaluated_from': EVALUATED_FROM, **options},
    columns={'learning_rate_factor': factor, 'schedule': schedule},
  )


def trainings(options: argparse.Namespace) -> list[Training]:
  """All runs, schedule by schedule and then seed by seed."""
  return [
    training(
      workload,
      seed,
      factor,
      schedule,
      rules=RULES
      | (FURTHER_RULES if (factor, schedule) == choice_tables.TUNED else {}),
      to_target=True,
      # Choices of whole runs, for the figure.
      to_the_end=seed == options.seeds[0],
    )
    for schedule in options.schedules
    for seed in options.seeds
    for factor in options.learning_rate_factors
    for workload in options.workloads
  ]


def all_rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows with every column; ratios are to the raw weights of the same run."""
  choices = {id(result): result['choices'] for result in results}
  rows = []
  for result in results:
    for row in frame.rows_of([result], {'candidate': 'raw'}):
      name = row['candidate']
      row['share_of_raw'] = _share_of_raw(choices[id(result)].get(name))
      row['reached_at_first_look'] = row['at_first_evaluation']
      row['candidate'] = choice_tables.NADAMW if name == 'raw' else name
      rows.append(row)
  return rows


def rows_of(results: Sequence[Result]) -> list[Row]:
  """Rows of auto.json."""
  return frame.select(all_rows_of(results), COLUMNS)


def _share_of_raw(choices: Sequence[Sequence[int]] | None) -> float | None:
  """Fraction of a run's choices that are the raw weights; None without any."""
  if choices is None:
    return None
  # Below 0: no candidate had a finite loss.
  return sum(which <= 0 for _, which in choices) / len(choices)


def choices_of(results: Sequence[Result]) -> list[Row]:
  """Rows of choices.json: [step, index into the candidates] of each rule.

  The index is -1 where no candidate had a finite loss: the raw weights.
  """
  keys = ('workload', 'seed', 'learning_rate_factor', 'schedule')
  return [
    {key: result[key] for key in (*keys, 'budget_steps')}
    | {
      'candidates': [n for n in result['curves'] if n not in result['choices']],
      'choices': result['choices'],
    }
    for result in results
  ]


STUDY = Study(
  folder='auto',
  seeds=(0, 1, 2, 3, 4),
  trainings=trainings,
  files={'auto.json': rows_of, 'choices.json': choices_of},
  tables={
    title: ('auto.json', table)
    for title, table in {
      'Extent': extent,
      'Numbers to reach': verdicts,
      'Tuned learning rate, cosine to zero': steps,
      f'Behind the best fixed candidate in hindsight ({AUTO} and others)': gaps,
      'Other rules and probes, tuned learning rate, cosine to zero': ablation,
    }.items()
  },
  figures={
    'auto.png': ('auto.json', choice_figures.draw_steps),
    'choices.png': ('choices.json', choice_figures.draw_choices),
  },
  options=(
    Option('schedules', SCHEDULES, 'of the learning rate'),
    Option(
      'learning_rate_factors',
      LEARNING_RATE_FACTORS,
      'multiples of the tuned learning rate',
    ),
  ),
  order=('workload', 'schedule', 'learning_rate_factor', 'seed'),
)
