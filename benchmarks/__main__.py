"""Run the benchmarks: `python -m benchmarks [names] [--output FILE]`.

Results go to the ignored folder results/bench/local/; `make bench-promote`
makes them the committed ones, which the documentation shows.
"""

import argparse
import importlib
import pathlib

from benchmarks import measure

QUESTIONS = (
  'ema_update',
  'lawa',
  'swap',
  'nadamw',
  'state_bytes',
  'auto',
  'offline',
  'shampoo',
  'train_step',
)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('names', nargs='*', choices=[[], *QUESTIONS])
  parser.add_argument(
    '--output', type=pathlib.Path, default=measure.LOCAL / measure.BENCHMARKS
  )
  arguments = parser.parse_args()
  for name in arguments.names or QUESTIONS:
    results = importlib.import_module(f'benchmarks.{name}').measure()
    measure.report(results, arguments.output)


if __name__ == '__main__':
  main()
