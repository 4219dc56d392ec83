"""Every `python -m lab...` command of the documentation parses.

A command runs with one more flag, which no command has. Its parser has read
all other arguments without a complaint if it complains about this one alone.
"""

import pytest
from lab_commands import outcome
from pages import PAGES, lab_commands, name_of

UNKNOWN = 'a_flag_that_no_command_has'
# test_extending.py runs the commands of that page, which need its files.
COMMANDS = sorted(
  {
    (name_of(page), *words)
    for page in PAGES
    for words in lab_commands(page)
    if page.name != 'extending.md'
  }
)


def test_the_pages_have_commands():
  assert len(COMMANDS) > 10


@pytest.mark.parametrize(
  'command', COMMANDS, ids=lambda c: '-'.join(c[:4]).replace('/', '_')
)
def test_a_command_of_the_pages_parses(command):
  _, module, *arguments = command
  if '...' in arguments:
    pytest.skip('The arguments are those of the command above it.')
  status, error = outcome(module, [*arguments, f'--{UNKNOWN}'])
  assert status in (1, 2)
  assert UNKNOWN in error, error
