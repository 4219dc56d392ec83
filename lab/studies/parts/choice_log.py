"""Which average each evaluation of a trial has seen, from its logs.

Logs of this runner and of AlgoPerf's are read alike.
"""

import csv
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from lab.core import logs
from lab.core.choice_columns import CHOICE, LOSS, name_of
from lab.core.curves import step_of
from lab.core.errors import InputError
from weightavg.schemes import auto


class Choice(NamedTuple):
  """One evaluation: steps made, candidate shown, losses by candidate."""

  step: int
  shown: str
  losses: dict[str, float]


def _loss(text: str) -> float:
  # AlgoPerf's logs leave a loss that is not a number empty.
  return float(text) if text else math.nan


def names_in(hparams: Mapping[str, Any] | None) -> tuple[str, ...]:
  """The candidates of a point, in the order of their indices."""
  text = (hparams or {}).get('averaging_candidates')
  return auto.names(text or auto.DEFAULT_CANDIDATES)


def read(trial_dir: str) -> list[Choice]:
  """Choices of a run in order; of steps that were repeated, the later ones.

  Raises:
    InputError: there is no such run, or it chose nothing.
  """
  where = f'Invalid TRIAL_DIR={trial_dir}.'
  if not os.path.isdir(trial_dir):
    raise InputError(f'{where} No such directory.')
  path = os.path.join(trial_dir, logs.MEASUREMENTS)
  if not os.path.isfile(path):
    raise InputError(f'{where} It has no {logs.MEASUREMENTS}.')
  with open(path, encoding='utf-8', newline='') as file:
    # A run that was killed while writing leaves a short last line.
    rows = [row for row in csv.DictReader(file) if None not in row.values()]
  rows = [row for row in rows if row.get(CHOICE)]
  if not rows:
    raise InputError(
      f'{where} This run chose among no averages, or has not been evaluated '
      'yet.'
    )
  names = names_in(logs.read_json(os.path.join(trial_dir, logs.HPARAMS)))
  logged = {key[len(LOSS) :] for key in rows[0] if key.startswith(LOSS)}
  if logged != set(names):
    raise InputError(
      f'{where} {logs.MEASUREMENTS} has the candidates '
      f'{", ".join(sorted(logged))}, {logs.HPARAMS} {", ".join(sorted(names))}.'
    )
  choices: list[Choice] = []
  for row in rows:
    if float(row[CHOICE]) >= len(names):
      raise InputError(
        f'{where} {logs.MEASUREMENTS} has the choice {row[CHOICE]}, of '
        f'{len(names)} candidates.'
      )
    step = step_of(row)
    while choices and choices[-1].step >= step:
      choices.pop()
    losses = {name: _loss(row[LOSS + name]) for name in names}
    choices.append(Choice(step, name_of(float(row[CHOICE]), names), losses))
  return choices
