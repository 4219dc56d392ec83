"""A study from its declaration: command line, runs, files, tables, figures."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lab.core import command_line, logs
from lab.core.errors import InputError
from lab.studies.parts import costs, execution, kept_rows
from lab.studies.parts.frame import Row
from lab.studies.parts.training import ROOT, Result, Training
from lab.workloads import WORKLOADS


@dataclasses.dataclass(frozen=True)
class Option:
  """A list on the command line, each of whose values must be known.

  Args:
    name: of the flag.
    values: those allowed; all by default.
    help: one line.
  """

  name: str
  values: Sequence[Any]
  help: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """Declares a study.

  Args:
    folder: of the committed results, in results/.
    seeds: by default.
    trainings: the grid of runs, from workloads, seeds and options.
    files: name of a JSON file to the rows that it gets from the results.
    tables: title to a file of `files` and a function from its rows to Markdown.
    figures: name of a PNG file to a file of `files` and a function that draws
      its rows to a path.
    options: flags beside --workloads and --seeds.
    switches: flags without a value, and the help of each.
    workloads: by default.
    order: keys of a result by which the results are sorted.
    joins: units of rows, of which one of the files has a column for the target;
      None if all rows depend on all runs.
    place: key by which rows that are joined are sorted; by default `order` as
      far as the seed.
    shares: folder of the study whose finished runs this one uses and adds to.
    notes: lines about the runs, printed before them.
  """

  folder: str
  seeds: tuple[int, ...]
  trainings: Callable[[argparse.Namespace], list[Training]]
  files: Mapping[str, Callable[[list[Result]], list[Row]]]
  tables: Mapping[str, tuple[str, Callable[[list[Row]], str]]]
  figures: Mapping[
    str, tuple[str, Callable[[list[Row], pathlib.Path], None]]
  ] = dataclasses.field(default_factory=dict)
  options: tuple[Option, ...] = ()
  switches: Mapping[str, str] = dataclasses.field(default_factory=dict)
  workloads: tuple[str, ...] = tuple(sorted(WORKLOADS))
  order: tuple[str, ...] = ('workload', 'seed')
  joins: kept_rows.Units | None = None
  place: Callable[[Row], Any] | None = None
  shares: str | None = None
  notes: Callable[[argparse.Namespace], list[str]] = lambda options: []

  def place_of(self, row: Row) -> Any:
    """Return the key by which a row is sorted in its file."""
    if self.place:
      return self.place(row)
    # The rows of one workload and seed are in the order of their file.
    return [row[key] for key in self.order[: self.order.index('seed') + 1]]

  def committed(self, file: str) -> list[Row]:
    """The committed rows of one of the study's files."""
    return logs.read_json(str(ROOT / 'results' / self.folder / file))


def parser_of(name: str, text: str) -> command_line.Parser:
  """A parser of `python -m lab.studies NAME`, described by a docstring."""
  parser = command_line.Parser(
    f'python -m lab.studies {name}', description=text
  )
  parser.formatter_class = command_line.Formatter
  return parser


def values_of(text: str, allowed: Sequence[Any], name: str) -> list[Any]:
  """Known values in a comma-separated list, in its order.

  Raises:
    InputError: one is unknown, or is given twice.
  """
  known = {_text(value): value for value in allowed}
  return [known[key] for key in command_line.names_of(text, [*known], name)]


def _text(value: Any) -> str:
  return f'{value:g}' if isinstance(value, float) else str(value)


def jobs_of(number: int) -> int:
  """The number of processes.

  Raises:
    InputError: it is below 1.
  """
  if number < 1:
    raise InputError(f'Invalid jobs={number}. Must be in [1, inf).')
  return number


def _default_folder(study: Study) -> pathlib.Path:
  return pathlib.Path('results', study.folder)


def _options(
  name: str, text: str, study: Study, arguments: Sequence[str]
) -> Any:
  parser = parser_of(name, text)
  lists = [
    Option('workloads', sorted(WORKLOADS), 'local workloads'),
    *study.options,
  ]
  defaults = {'workloads': study.workloads}
  for option in lists:
    default = ','.join(map(_text, defaults.get(option.name, option.values)))
    parser.add_argument(
      f'--{option.name}', default=default, help=f'{option.help} (%(default)s)'
    )
  for switch, meaning in study.switches.items():
    parser.add_argument(f'--{switch}', action='store_true', help=meaning)
  seeds = ','.join(map(str, study.seeds))
  parser.add_argument(
    '--seeds', default=seeds, help='of the runs (%(default)s)'
  )
  parser.add_argument(
    '--jobs',
    type=int,
    default=2,
    help='processes, one thread each (%(default)s)',
  )
  parser.add_argument(
    '--output_dir',
    type=pathlib.Path,
    default=_default_folder(study),
    help='rows and figures, and runs/ with the finished runs (%(default)s)',
  )
  parser.add_argument(
    '--report_only',
    action='store_true',
    help='run nothing: report on the finished runs, or, where there are none, '
    'on the rows in --output_dir',
  )
  costs.add_flag(parser)
  options = parser.parse_args(arguments)
  for option in lists:
    given = getattr(options, option.name)
    setattr(options, option.name, values_of(given, option.values, option.name))
  options.seeds = command_line.seeds_of(options.seeds)
  options.jobs = jobs_of(options.jobs)
  return options


def _read(study: Study, folder: pathlib.Path) -> dict[str, list[Row] | None]:
  # A file without rows is none.
  return {
    file: kept_rows.read(folder / file, columns=('workload',)) or None
    for file in study.files
  }


def _written(
  study: Study,
  path: pathlib.Path,
  before: list[Row],
  own: list[Row],
  results: list[Result],
) -> list[Row]:
  """Return the rows of a file after new runs."""
  if study.joins:
    return kept_rows.join(
      path, before, own, results, study.joins, study.place_of
    )
  return kept_rows.replace(path, before, own)


def main(name: str, text: str, study: Study, arguments: Sequence[str]) -> None:
  """Make the runs that are missing, write rows and figures, print the tables.

  Args:
    name: of the study.
    text: its description.
    study: its declaration.
    arguments: of the command line.

  Raises:
    InputError: an argument cannot be used, or there is nothing to report.
  """
  options = _options(name, text, study, arguments)
  folder, runs = options.output_dir, options.output_dir / 'runs'
  if study.shares and folder == _default_folder(study):
    runs = folder.with_name(study.shares) / 'runs'
  trainings = study.trainings(options)
  for note in study.notes(options):
    print(note, file=sys.stderr)
  if options.dry_run:
    print(costs.describe_missing(trainings, str(runs), options.jobs))
    return
  # A damaged file is an error before the runs, not after them.
  _read(study, folder)
  execution.warn_of_other_code(trainings, str(runs))
  if options.report_only:
    results = execution.finished(trainings, str(runs))
  else:
    command_line.check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    results = execution.run_all(trainings, str(runs), options.jobs)
  results.sort(key=lambda result: [result[key] for key in study.order])
  made: dict[str, list[Row]] = {}
  # Another command may have written in the meantime.
  known = _read(study, folder)
  rows = dict(known)
  if results:
    made = {file: make(results) for file, make in study.files.items()}
  why_not = ''
  try:
    written = {
      file: _written(study, folder / file, known[file] or [], own, results)
      for file, own in made.items()
    }
  except kept_rows.Incomplete as error:
    why_not = f'{error} The runs are kept in {runs}.'
    # Where these runs give no row, a table is that of the file.
    rows |= {f: own for f, own in made.items() if own or not known[f]}
  else:
    rows |= written
    for file, own in written.items():
      logs.write_rows(str(folder / file), own)
      if stay := len(own) - len(made[file]):
        print(
          f'{folder / file}: {stay} rows of other runs stay.',
          file=sys.stderr,
        )
  found = {file: own for file, own in rows.items() if own is not None}
  for file in study.files:
    if file not in found:
      raise InputError(
        f'No finished run of these is in {runs}, and no {file} in {folder}.'
      )
  for title, (file, table) in study.tables.items():
    print(f'{title}\n\n{table(found[file])}\n')
  if why_not:
    print(why_not, file=sys.stderr)
    return
  for figure, (file, draw) in study.figures.items():
    draw(found[file], folder / figure)
  print(f'Rows and figures: {folder}')
