"""The command `python -m lab.studies claims`."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from lab.core import command_line, logs
from lab.core.errors import InputError
from lab.studies.claims import report, rows
from lab.studies.claims.claim import CLAIMS, named
from lab.studies.claims.shelf import FULL, QUICK, Shelf
from lab.studies.parts import costs, execution, study
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
  costs.add_flag(parser)
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


def _make(shelf: Shelf, runs: str, jobs: int) -> Exception | None:
  """Make the runs that are missing; the error of one that failed."""
  print(costs.describe_missing(shelf.runs, runs, jobs), file=sys.stderr)
  try:
    execution.run_all(shelf.runs, runs, jobs, costs.hours_of)
  except Exception as error:
    return error
  return None


def _write(folder: pathlib.Path, all_rows: list[Row]) -> None:
  """Write the page and the figures."""
  (folder / PAGE).write_text(report.page(all_rows), encoding='utf-8')
  report.draw(all_rows, folder / FIGURE)
  report.draw_noise(all_rows, folder / NOISE_FIGURE)


def main(arguments: Sequence[str]) -> None:
  """Make the runs that are missing, write rows, tables and figures.

  Claims that do not need a run that fails are reported all the same; its error
  is raised at the end.

  Raises:
    InputError: an argument cannot be used, or there is nothing to report.
  """
  options = _options(arguments)
  folder, claims = options.output_dir, options.claims
  shelf = Shelf(QUICK if options.quick else FULL)
  # Measured on an empty shelf, claims ask for their runs.
  rows.rows_of(claims, shelf)
  runs = folder / 'runs'
  if options.dry_run:
    print(costs.describe_missing(shelf.runs, str(runs), options.jobs))
    return
  all_rows = _known(folder / ROWS)
  failed = None
  if not options.report_only:
    command_line.check_writable(folder)
    failed = _make(shelf, str(runs), options.jobs)
  if runs.is_dir():
    shelf.put([execution.kept(run, str(runs)) for run in shelf.runs])
  if shelf.filled:
    all_rows = rows.merged(rows.rows_of(claims, shelf), all_rows)
    logs.write_rows(str(folder / ROWS), all_rows)
  chosen = {claim.name for claim in claims}
  shown = [row for row in all_rows if row['claim'] in chosen]
  if shown:
    _write(folder, all_rows)
    print(f'{report.table(shown)}\n\nRows, tables and figures: {folder}')
  if failed is not None:
    raise failed
  if not shown:
    raise InputError(
      f'No finished run of these claims is in {runs}, and no row of them in '
      f'{folder / ROWS}.'
    )
