"""Average saved checkpoints: `python -m lab.offline average|sweep --help`."""

import signal
import sys
from collections.abc import Sequence

from lab.core import command_line
from lab.core.errors import InputError
from lab.offline import average_command, sweep_command

_COMMANDS = {'average': average_command, 'sweep': sweep_command}


def main(arguments: Sequence[str] | None = None) -> int:
  """Run a command and return its exit status.

  The errors of all outputs that fail are printed, one a line.
  """
  parser = command_line.Parser('python -m lab.offline', description=__doc__)
  commands = parser.add_subparsers(dest='command', required=True)
  for name, module in _COMMANDS.items():
    # No abbreviations: a flag must not mean another one that is added later.
    sub = commands.add_parser(
      name,
      description=module.__doc__,
      allow_abbrev=False,
      formatter_class=command_line.Formatter,
    )
    module.add_arguments(sub)
  try:
    args = parser.parse_args(arguments)
    failures = _COMMANDS[args.command].run(args)
  except InputError as error:
    failures = average_command.report([error])
  return 1 if failures else 0


if __name__ == '__main__':
  # So that the end of a job removes unfinished files.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  command_line.run(main)
