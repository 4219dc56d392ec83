"""Averages after the fact: `python -m lab.offline average|sweep --help`."""

import argparse
import sys
from collections.abc import Sequence

from lab.core.errors import InputError
from lab.offline import average_command, sweep_command

_COMMANDS = {'average': average_command, 'sweep': sweep_command}


def main(arguments: Sequence[str] | None = None) -> int:
  """Run a command; the exit status."""
  parser = argparse.ArgumentParser(prog='lab.offline', description=__doc__)
  commands = parser.add_subparsers(dest='command', required=True)
  for name, module in _COMMANDS.items():
    # A flag is what it says: no abbreviations.
    sub = commands.add_parser(
      name, description=module.__doc__, allow_abbrev=False
    )
    module.add_arguments(sub)
  args = parser.parse_args(arguments)
  try:
    failures = _COMMANDS[args.command].run(args)
  except InputError as error:
    failures = average_command.report([error])
  return 1 if failures else 0


if __name__ == '__main__':
  sys.exit(main())
