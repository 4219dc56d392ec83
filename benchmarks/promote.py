"""Add this machine's measurements to the committed ones: `make bench-promote`.

Committed benchmarks that were not measured here keep their rows.
"""

import json
import pathlib

from benchmarks.measure import BENCHMARKS, COMMITTED, LOCAL, TIME_BREAKDOWN
from lab.core import command_line, logs
from lab.core.errors import InputError


def promote(local: pathlib.Path, committed: pathlib.Path) -> list[pathlib.Path]:
  """Merge the files of `local` into those of `committed`.

  Returns:
    The files that were written.

  Raises:
    InputError: `local` has no results.
  """
  names = [
    name for name in (BENCHMARKS, TIME_BREAKDOWN) if (local / name).exists()
  ]
  if not names:
    raise InputError(f'No results in {local}. Run `make bench` first.')
  for name in names:
    target = committed / name
    rows = json.loads(target.read_text()) if target.exists() else {}
    rows |= json.loads((local / name).read_text())
    logs.write_json(str(target), dict(sorted(rows.items())))
  return [committed / name for name in names]


def main() -> None:
  command_line.Parser(
    'python -m benchmarks.promote', description=__doc__
  ).parse_args()
  for path in promote(LOCAL, COMMITTED):
    print(path)


if __name__ == '__main__':
  command_line.run(main)
