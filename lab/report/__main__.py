"""Report on logs: python -m lab.report LOGS... --output DIR.

LOGS are folders of submissions in AlgoPerf's layout,
<submission>/study_<s>/<workload>_<framework>/trial_<k>/eval_measurements.csv.
Writes report.json, report.md, report.html and figures/ (PNG and PDF).

Exit status: 0; 1 if nothing can be reported, and then nothing is written; 2 if
the report was written but something could not be read (listed at its end).
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from lab.core import command_line
from lab.core.errors import InputError
from lab.report import figures, layout, log_files, page, tables, targets
from lab.report.report import RULESETS, Options, Report, build
from lab.report.savings import MISSED_RULES
from lab.report.time_to_target import FASTEST

PROBLEMS_FOUND = 2


def parser() -> command_line.Parser:
  """Arguments of the command."""
  result = command_line.Parser(
    prog='python -m lab.report',
    description=__doc__,
    formatter_class=command_line.Formatter,
  )
  add = result.add_argument
  add('logs', nargs='+', type=pathlib.Path, metavar='LOGS')
  add('--output', required=True, type=pathlib.Path, metavar='DIR')
  add(
    '--ruleset',
    choices=RULESETS,
    default='external',
    help='sets time budgets and the trials expected in a study (external)',
  )
  add(
    '--targets',
    type=pathlib.Path,
    metavar='FILE',
    help='workload_targets.json of any version; default: the first in LOGS, or '
    f'those of AlgoPerf {targets.DEFAULT_VERSION}',
  )
  add('--baseline', metavar='NAME', help='submission that savings refer to')
  add(
    '--missed',
    choices=MISSED_RULES,
    help='what a missed target costs (budget)',
  )
  add(
    '--fastest',
    choices=FASTEST,
    default='seconds',
    help='what the fastest trial of a study has the fewest of; the published '
    'scoring takes the fewest evaluations (seconds)',
  )
  add('--gpus', type=_gpus, help='devices of all runs; default: from the logs')
  add(
    '--what_if',
    action='append',
    default=[],
    metavar='SUBMISSION:CHANGES',
    help='xFACTOR on all times, WORKLOAD=SECONDS, comma-separated; repeatable',
  )
  return result


def _gpus(text: str) -> int:
  count = int(text) if text.isdecimal() else 0
  if count < 1:
    raise argparse.ArgumentTypeError(f'{text!r} must be a whole number >= 1')
  return count


def _targets(arguments: argparse.Namespace) -> targets.Targets:
  """Return the targets asked for, those of the logs, or the newest ones."""
  if arguments.targets is not None:
    return targets.read(arguments.targets)
  files = [folder / targets.TARGETS_FILE for folder in arguments.logs]
  files = [file for file in files if file.is_file()]
  if not files:
    return targets.of_version()
  first = targets.read(files[0])
  other = [f for f in files[1:] if f.read_bytes() != files[0].read_bytes()]
  lines = [
    f'{file}: differs from {files[0]}, whose targets are used. Choose by '
    '--targets.'
    for file in other
  ]
  return dataclasses.replace(first, invalid=(*first.invalid, *lines))


def read(arguments: argparse.Namespace) -> Report:
  """Read logs and compute a report."""
  if arguments.missed and not arguments.baseline:
    raise InputError('Invalid missed. It has no effect without baseline.')
  for folder in arguments.logs:
    if not folder.is_dir():
      raise InputError(f'Invalid LOGS={folder}. Must be a directory.')
  found = {p.workload for f in arguments.logs for p in layout.find(f)}
  if not found:
    raise InputError(
      f'No logs in {", ".join(map(str, arguments.logs))}. Must hold '
      '<submission>/study_<s>/<workload>_<framework>/trial_<k>/'
      'eval_measurements.csv.'
    )
  goals = targets.for_logs(_targets(arguments), found)
  reader = log_files.Reader(goals.goals)
  trials = reader.read(arguments.logs)
  if not trials:
    raise InputError('No trial can be read. ' + ' '.join(reader.problems))
  options = Options(
    ruleset=arguments.ruleset,
    baseline=arguments.baseline,
    missed=arguments.missed or 'budget',
    fastest=arguments.fastest,
    gpus=arguments.gpus,
    what_if=arguments.what_if,
  )
  return build(trials, goals, options, reader.problems)


def json_text(content: Mapping[str, Any]) -> str:
  """JSON with a line for each row of a list and each submission's score."""

  def lines(value: Any) -> str:
    if isinstance(value, list) and value:
      rows = [json.dumps(row, allow_nan=False) for row in value]
      return '[\n' + ',\n'.join(rows) + '\n]'
    return json.dumps(value, allow_nan=False, indent=1)

  parts = [f'{json.dumps(key)}: {lines(part)}' for key, part in content.items()]
  return '{\n' + ',\n'.join(parts) + '\n}\n'


def write(report: Report, output: pathlib.Path) -> None:
  """Write all files beside the output first, then move them there."""
  output.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=output.parent, prefix='.report') as name:
    folder = pathlib.Path(name)
    drawn = figures.save_all(report, folder / 'figures')
    shown = tables.all_tables(report)
    pictures = [f'figures/{figure}.png' for figure in drawn]
    for file, text in (
      ('report.json', json_text(report.as_json())),
      ('report.md', tables.markdown(report, shown, pictures)),
      ('report.html', page.render(report, shown)),
    ):
      # Problems name paths, which need not be UTF-8.
      (folder / file).write_text(
        text, encoding='utf-8', errors='backslashreplace'
      )
    (output / 'figures').mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.rglob('*.*')):
      os.replace(path, output / path.relative_to(folder))


def main(argv: Sequence[str] | None = None) -> int:
  """Run the command; returns the exit status."""
  arguments = parser().parse_args(argv)
  command_line.check_writable(arguments.output)
  report = read(arguments)
  write(report, arguments.output)
  print(tables.all_tables(report)[0].text())
  print(f'Written: {arguments.output}/report.html, report.md, report.json')
  for problem in report.problems:
    print(f'problem: {problem}', file=sys.stderr)
  return PROBLEMS_FOUND if report.problems else 0


if __name__ == '__main__':
  command_line.run(main)
