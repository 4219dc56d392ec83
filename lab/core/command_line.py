"""Run commands that report bad input in one line: `error: ...`, status 1."""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags

from lab.core.errors import InputError

Formatter = argparse.RawDescriptionHelpFormatter


class Parser(argparse.ArgumentParser):
  """A parser that raises InputError instead of printing its usage."""

  def error(self, message: str) -> NoReturn:
    """Raise the message of argparse as an InputError."""
    raise InputError(f'{message} (--help lists the arguments).')


def names_of(text: str, allowed: Sequence[str], what: str) -> list[str]:
  """Split a comma-separated list of names; 'all' gives every allowed name.

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


def seeds_of(text: str) -> list[int]:
  """Numbers in a comma-separated list.

  Raises:
    InputError: one is not a number, or is given twice.
  """
  names = [name.strip() for name in text.split(',')]
  for name in names:
    if not name.isdecimal():
      raise InputError(f'Invalid seeds={name!r}. Must be integers in [0, inf).')
    if names.count(name) > 1:
      raise InputError(f'Invalid seeds={text}. {name} is given twice.')
  return [int(name) for name in names]


def check_writable(folder: pathlib.Path) -> None:
  """Raise InputError unless a folder is writable or can be created."""
  existing = folder
  while not os.path.lexists(existing):
    existing = existing.parent
  if not existing.is_dir() or not os.access(existing, os.W_OK):
    raise InputError(
      f'Cannot write to {folder}: {existing} is not a writable directory.'
    )


def run(function: Callable[[], int | None]) -> NoReturn:
  """Call a command and exit with its status.

  An InputError becomes one line on standard error and status 1. So does an
  error of the file system: a full disk, missing rights.
  """
  try:
    sys.exit(function() or 0)
  except (InputError, OSError) as error:
    print_error(error)
    sys.exit(1)
  except KeyboardInterrupt:
    sys.exit(130)


def run_with_flags(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
  """Parse absl flags and run `main` on the remaining arguments, as `run` does.

  A flag that is unknown, missing or out of range becomes one line.
  """

  def parse(arguments: list[str]) -> list[str]:
    try:
      return flags.FLAGS(arguments)
    except flags.Error as error:
      raise InputError(f'{error} (--helpfull lists the flags).') from error

  run(lambda: app.run(main, flags_parser=parse))


def print_error(error: Exception | str) -> None:
  """Print an error as one line on standard error."""
  print(f'error: {error}', file=sys.stderr, flush=True)
