"""Run a study: `python -m lab.studies NAME [--help]`."""

import importlib
import sys
from collections.abc import Sequence

from lab import studies
from lab.core import command_line
from lab.core.errors import InputError


def main(arguments: Sequence[str]) -> None:
  """Hand the command line to the study that it names.

  Raises:
    InputError: no study has this name, or it refuses its arguments.
  """
  known = studies.names()
  name = arguments[0] if arguments else ''
  if name in ('-h', '--help'):
    print(f'python -m lab.studies NAME [--help]\n\n{studies.__doc__}')
    return
  if name not in known:
    raise InputError(
      f'Invalid study={name!r}. Must be among {", ".join(known)}.'
    )
  # Help and a wrong name wait neither for torch nor for pandas.
  from lab.studies.parts import study

  module = importlib.import_module(f'{studies.__name__}.{name}')
  if hasattr(module, 'main'):
    module.main(arguments[1:])
  else:
    study.main(name, module.__doc__ or '', module.STUDY, arguments[1:])


if __name__ == '__main__':
  command_line.run(lambda: main(sys.argv[1:]))
