"""Commands that end bad input in one line: `error: ...`, status 1."""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from lab.core.errors import InputError

Formatter = argparse.RawDescriptionHelpFormatter


class Parser(argparse.ArgumentParser):
  """A parser that raises InputError instead of printing its usage."""

  def error(self, message: str) -> NoReturn:
    """Raise what argparse would print."""
    raise InputError(f'{message} (--help lists the arguments).')


def names_of(text: str, allowed: Sequence[str], what: str) -> list[str]:
  """Names in a comma-separated list; 'all' stands for all that are allowed.

  >>> names_of('b,a', ['a', 'b', 'c'], 'letters')
  ['b', 'a']

  Raises:
    InputError: a name is not allowed, or is given twice.
  """
  if text == 'all':
    return list(allowed)
  names = [name.strip() for name in text.split(',')]
  for name in names:
    if name not in allowed:
      raise InputError(
        f'Invalid {what}={name!r}. Must be all or among {", ".join(allowed)}.'
      )
    if names.count(name) > 1:
      raise InputError(f'Invalid {what}={text}. {name} is given twice.')
  return names


def check_writable(folder: pathlib.Path) -> None:
  """Raise InputError unless a folder can be written to, or be made."""
  existing = folder
  while not os.path.lexists(existing):
    existing = existing.parent
  if not existing.is_dir() or not os.access(existing, os.W_OK):
    raise InputError(
      f'Cannot write to {folder}: {existing} is not a writable directory.'
    )


def run(function: Callable[[], int | None]) -> NoReturn:
  """Call and exit; an InputError becomes one line and status 1.

  So does what the file system refuses: a full disk, a folder without rights.
  """
  try:
    sys.exit(function() or 0)
  except (InputError, OSError) as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    sys.exit(1)
  except KeyboardInterrupt:
    sys.exit(130)
