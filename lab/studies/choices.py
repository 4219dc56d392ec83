"""Which average each evaluation of a run has seen, and why.

`python -m lab.studies.choices TRIAL_DIR` prints a row for each evaluation: the
step, the candidate that was chosen and every candidate's loss on the probe. It
writes the same as a figure, choices.png, to the trial's directory, or to
--output. Logs of this runner and of AlgoPerf's own are read alike.
"""

import csv
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lab.core import command_line, curves, logs
from lab.core.choice_columns import CHOICE, LOSS, name_of
from lab.core.errors import InputError
from lab.studies import auto_figures
from weightavg.schemes import auto


class Choice(NamedTuple):
  """At one evaluation: steps made, candidate shown, losses by candidate."""

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
  if not os.path.isdir(trial_dir):
    raise InputError(f'Invalid TRIAL_DIR={trial_dir}. No such directory.')
  path = os.path.join(trial_dir, logs.MEASUREMENTS)
  if not os.path.isfile(path):
    raise InputError(
      f'Invalid TRIAL_DIR={trial_dir}. It has no {logs.MEASUREMENTS}.'
    )
  with open(path, encoding='utf-8', newline='') as file:
    # A run that was killed while writing leaves a short last line.
    rows = [row for row in csv.DictReader(file) if None not in row.values()]
  rows = [row for row in rows if row.get(CHOICE)]
  if not rows:
    raise InputError(
      f'Invalid TRIAL_DIR={trial_dir}. This run chose among no averages, or '
      'has not been evaluated yet.'
    )
  names = names_in(logs.read_json(os.path.join(trial_dir, logs.HPARAMS)))
  logged = {key[len(LOSS) :] for key in rows[0] if key.startswith(LOSS)}
  if logged != set(names):
    raise InputError(
      f'Invalid TRIAL_DIR={trial_dir}. {logs.MEASUREMENTS} has the candidates '
      f'{", ".join(sorted(logged))}, {logs.HPARAMS} {", ".join(sorted(names))}.'
    )
  choices: list[Choice] = []
  for row in rows:
    if float(row[CHOICE]) >= len(names):
      raise InputError(
        f'Invalid TRIAL_DIR={trial_dir}. {logs.MEASUREMENTS} has the choice '
        f'{row[CHOICE]}, of {len(names)} candidates.'
      )
    step = int(float(row['global_step']))
    while choices and choices[-1].step >= step:
      choices.pop()
    losses = {name: _loss(row[LOSS + name]) for name in names}
    choices.append(Choice(step, name_of(float(row[CHOICE]), names), losses))
  return choices


def table(choices: Sequence[Choice]) -> str:
  """Step, candidate and losses; a row for each evaluation."""
  names = list(choices[0].losses)
  rows = [
    [
      str(choice.step),
      choice.shown,
      *(f'{choice.losses[name]:.5g}' for name in names),
    ]
    for choice in choices
  ]
  return curves.table(['step', 'shown', *names], rows)


def main(argv: Sequence[str] | None = None) -> None:
  """Print the table, draw the figure."""
  parser = command_line.Parser(
    'python -m lab.studies.choices', description=__doc__
  )
  parser.formatter_class = command_line.Formatter
  parser.add_argument('trial_dir', metavar='TRIAL_DIR')
  parser.add_argument('--output', type=pathlib.Path, help='of the figure')
  arguments = parser.parse_args(argv)
  choices = read(arguments.trial_dir)
  print(table(choices))
  output = arguments.output
  if output is None:
    output = pathlib.Path(arguments.trial_dir, 'choices.png')
  if output.suffix != '.png':
    raise InputError(f'Invalid output={output}. Must end in .png.')
  command_line.check_writable(output.parent)
  output.parent.mkdir(parents=True, exist_ok=True)
  auto_figures.draw_run(
    [choice.step for choice in choices],
    {name: [c.losses[name] for c in choices] for name in choices[0].losses},
    [choice.shown for choice in choices],
    str(output),
  )
  print(f'\n{output}')


if __name__ == '__main__':
  command_line.run(main)
