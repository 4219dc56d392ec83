"""Every `python -m lab...` command of the documentation parses.

A command runs with one more flag, which no command has. Its parser has read
all other arguments without a complaint if it complains about this one alone.
"""

import runpy
import sys
import warnings

import pytest
from absl.testing import flagsaver
from pages import PAGES, ROOT, lab_commands, name_of

import lab.run.flags  # noqa: F401  (outside of flagsaver, which undoes it)

UNKNOWN = 'a_flag_that_no_command_has'
COMMANDS = sorted(
  {(name_of(p), *words) for p in PAGES for words in lab_commands(p)}
)


def complaint(module, arguments, monkeypatch, capsys):
  """Exit status and standard error of a command."""
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(sys, 'argv', [module, *arguments])
  with warnings.catch_warnings(), flagsaver.flagsaver():
    # runpy warns of a module that other tests have imported.
    warnings.simplefilter('ignore', RuntimeWarning)
    with pytest.raises(SystemExit) as caught:
      runpy.run_module(module, run_name='__main__', alter_sys=True)
  return caught.value.code, capsys.readouterr().err


def test_the_pages_have_commands():
  assert len(COMMANDS) > 10


@pytest.mark.parametrize(
  'command', COMMANDS, ids=lambda c: '-'.join(c[:4]).replace('/', '_')
)
def test_a_command_of_the_pages_parses(command, monkeypatch, capsys):
  _, module, *arguments = command
  if '...' in arguments:
    pytest.skip('The arguments are those of the command above it.')
  status, error = complaint(
    module, [*arguments, f'--{UNKNOWN}'], monkeypatch, capsys
  )
  assert status in (1, 2)
  assert UNKNOWN in error, error
