"""The command `python -m lab.studies claims`."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from lab.core import command_line, logs
from lab.core.errors import InputError
from lab.studies.claims import plan, report, rows
from lab.studies.claims.claim import CLAIMS, named
from lab.studies.claims.shelf import FULL, QUICK, Shelf
from lab.studies.parts import execution, study
from lab.studies.parts.frame import Row

FOLDER = pathlib.Path('results', 'study')
QUICK_FOLDER = FOLDER / 'quick'
ROWS, PAGE = 'claims.json', 'claims.md'
FIGURE, NOISE_FIGURE = 'claims.png', 'claims_noise.png'


def _options(arguments: Sequence[str]) -> argparse.Namespace:
  import lab.studies.claims as package

  parser = study.parser_of('claims', package.__doc__ or '')
  parser.add_argument(
    '--only', default='all', help='claims, separated by commas (%(default)s)'
  )
  parser.add_argument(
    '--quick',
    action='store_true',
    help='short runs of two workloads with two seeds: a test of the study',
  )
  parser.add_argument(
    '--jobs', type=int, default=2, help='processes, one thread each'
  )
  parser.add_argument(
    '--output_dir',
    type=pathlib.Path,
    help=f'rows, tables and figures, and runs/ with the finished runs '
    f'({FOLDER}; with --quick {QUICK_FOLDER})',
  )
  parser.add_argument(
    '--report_only',
    action='store_true',
    help='run nothing: report on the finished runs, or, where there are none, '
    'on the rows in --output_dir',
  )
  parser.add_argument(
    '--dry_run',
    action='store_true',
    help='print the number of runs and hours, and end',
  )
  options = parser.parse_args(arguments)
  known = [claim.name for claim in named(CLAIMS)]
  options.claims = named(command_line.names_of(options.only, known, 'only'))
  options.jobs = study.jobs_of(options.jobs)
  if options.output_dir is None:
    options.output_dir = QUICK_FOLDER if options.quick else FOLDER
  return options


def _known(path: pathlib.Path) -> list[Row]:
  """Rows that are there already; those of other claims are kept.

  Raises:
    InputError: the file is no list of rows.
  """
  if not path.exists():
    return []
  found = logs.read_json(str(path))
  if not isinstance(found, list) or any('claim' not in row for row in found):
    raise InputError(f'Invalid {path}. Must be a JSON list of claims.')
  return found


def main(arguments: Sequence[str]) -> None:
  """Make the runs that are missing, write rows, tables and figures.

  Raises:
    InputError: an argument cannot be used, or there is nothing to report.
  """
  options = _options(arguments)
  folder, claims = options.output_dir, options.claims
  shelf = Shelf(QUICK if options.quick else FULL)
  # Measured on an empty shelf, claims ask for their runs.
  rows.rows_of(claims, shelf)
  if options.dry_run:
    print(plan.describe(shelf.runs, options.jobs))
    return
  runs = str(folder / 'runs')
  old = _known(folder / ROWS)
  if options.report_only:
    if (folder / 'runs').is_dir():
      shelf.put([execution.kept(run, runs) for run in shelf.runs])
  else:
    command_line.check_writable(folder)
    print(plan.describe(shelf.runs, options.jobs), file=sys.stderr)
    shelf.put(execution.run_all(shelf.runs, runs, options.jobs, plan.hours_of))
  if shelf.filled:
    all_rows = rows.merged(rows.rows_of(claims, shelf), old)
    logs.write_rows(str(folder / ROWS), all_rows)
  else:
    all_rows = old
  chosen = {claim.name for claim in claims}
  shown = [row for row in all_rows if row['claim'] in chosen]
  if not shown:
    raise InputError(
      f'No finished run of these claims is in {runs}, and no row of them in '
      f'{folder / ROWS}.'
    )
  (folder / PAGE).write_text(report.page(all_rows), encoding='utf-8')
  report.draw(all_rows, folder / FIGURE)
  report.draw_noise(all_rows, folder / NOISE_FIGURE)
  print(f'{report.table(shown)}\n\nRows, tables and figures: {folder}')
