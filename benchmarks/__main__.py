"""Run the benchmarks: `python -m benchmarks [names] [--output FILE]`.

Results go to the ignored folder results/bench/local/; `make bench-promote`
makes them the committed ones, which the documentation shows.
"""

import importlib
import pathlib

from benchmarks import measure
from lab.core import command_line

QUESTIONS = (
  'ema_update',
  'own_loop',
  'lawa',
  'swap',
  'nadamw',
  'primal',
  'state_bytes',
  'auto',
  'offline',
  'shampoo',
  'train_step',
  'jax_ema_update',
  'jax_train_step',
)


def main() -> None:
  parser = command_line.Parser('python -m benchmarks', description=__doc__)
  parser.formatter_class = command_line.Formatter
  parser.add_argument(
    'names', nargs='*', help=f'among {", ".join(QUESTIONS)} (all)'
  )
  parser.add_argument(
    '--output', type=pathlib.Path, default=measure.LOCAL / measure.BENCHMARKS
  )
  arguments = parser.parse_args()
  given = ','.join(arguments.names) or 'all'
  names = command_line.names_of(given, QUESTIONS, 'names')
  measure.check_output(arguments.output)
  for name in names:
    results = importlib.import_module(f'benchmarks.{name}').measure()
    measure.report(results, arguments.output)


if __name__ == '__main__':
  command_line.run(main)
