"""The commands of the laboratory, `python -m lab...`, as tests run them."""

import contextlib
import io
import os
import pathlib
import runpy
import sys
import warnings
from collections.abc import Sequence
from unittest import mock

from absl.testing import flagsaver

import lab.run.runner  # noqa: F401  (before flagsaver, which would undo its flags)

ROOT = pathlib.Path(__file__).parents[2]


def commands() -> list[str]:
  """Names of all modules and packages of the clone that run as a command."""
  found = []
  paths = [*(ROOT / 'lab').rglob('*.py'), *(ROOT / 'benchmarks').glob('*.py')]
  for path in sorted(paths):
    parts = path.relative_to(ROOT).with_suffix('').parts
    if parts[-1] == '__main__':
      found.append('.'.join(parts[:-1]))
    elif "if __name__ == '__main__'" in path.read_text():
      found.append('.'.join(parts))
  return found


def outcome(module: str, arguments: Sequence[str]) -> tuple[int, str]:
  """Run a command in the repository; its exit status and standard error."""
  errors = io.StringIO()
  here = os.getcwd()
  os.chdir(ROOT)
  try:
    with (
      mock.patch.object(sys, 'argv', [module, *arguments]),
      contextlib.redirect_stderr(errors),
      contextlib.redirect_stdout(io.StringIO()),
      flagsaver.flagsaver(),
      warnings.catch_warnings(),
    ):
      # runpy warns of a module that other tests have imported.
      warnings.simplefilter('ignore', RuntimeWarning)
      runpy.run_module(module, run_name='__main__', alter_sys=True)
  except SystemExit as error:
    return int(error.code or 0), errors.getvalue()
  finally:
    os.chdir(here)
  return 0, errors.getvalue()
