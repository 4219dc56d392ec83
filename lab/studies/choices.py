"""Which average each evaluation of a trial has seen, and why.

`python -m lab.studies choices TRIAL_DIR` prints a row for each evaluation: the
step, the candidate that was chosen and every candidate's loss on the probe. It
draws the same to choices.png in the trial's directory, or to --output. Logs of
this runner and of AlgoPerf's are read alike.
"""

import pathlib
from collections.abc import Sequence

from lab.core import command_line
from lab.core.errors import InputError
from lab.studies.parts import choice_figures, choice_log, study, tables
from lab.studies.parts.choice_log import Choice


def table(choices: Sequence[Choice]) -> str:
  """Markdown: step, candidate and losses; a row for each evaluation."""
  lines = [
    [
      str(choice.step),
      choice.shown,
      *(f'{x:.5g}' for x in choice.losses.values()),
    ]
    for choice in choices
  ]
  return tables.markdown(['step', 'shown', *choices[0].losses], lines)


def main(arguments: Sequence[str]) -> None:
  """Print the table, draw the figure.

  Raises:
    InputError: there is no such trial, it chose nothing, or the figure cannot
      be written.
  """
  parser = study.parser_of('choices', __doc__)
  parser.add_argument('trial_dir', metavar='TRIAL_DIR')
  parser.add_argument('--output', type=pathlib.Path, help='of the figure')
  options = parser.parse_args(arguments)
  choices = choice_log.read(options.trial_dir)
  output = options.output or pathlib.Path(options.trial_dir, 'choices.png')
  if output.suffix != '.png':
    raise InputError(f'Invalid output={output}. Must end in .png.')
  command_line.check_writable(output.parent)
  print(table(choices))
  choice_figures.draw_trial(choices, output)
  print(f'\n{output}')
