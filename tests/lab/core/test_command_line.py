"""Commands report bad input in one line, in the same form."""

import re

import pytest
from lab_commands import commands, outcome

from lab.core import command_line
from lab.core.errors import InputError
from lab.workloads import WORKLOADS


def assert_one_line(status, error):
  assert status in (1, 2)
  assert re.fullmatch(r'error: [^\n]+\n', error), error


def test_there_are_commands():
  assert {'lab.run', 'lab.launch', 'lab.export', 'lab.offline'} <= set(
    commands()
  )


@pytest.mark.parametrize(
  'module', [c for c in commands() if not c.startswith('lab.studies.')]
)
def test_an_unknown_flag_is_one_line(module):
  assert_one_line(*outcome(module, ['--no_such_flag=1']))


RUN = (
  '--submission_path=submissions/nadamw/submission.py',
  '--tuning_search_space=tuning_search_spaces/local/stdlib_lm.json',
  '--experiment_dir=/tmp/never_written',
  '--experiment_name=x',
)
LAUNCH = ('--experiment_dir', '/tmp/never_written', '--executor', 'print')


@pytest.mark.parametrize(
  ('module', 'arguments', 'names'),
  [
    ('lab.run', ['--workload=nope', *RUN], WORKLOADS),
    (
      'lab.launch',
      ['--workloads', 'nope', '--submissions', 'nadamw', *LAUNCH],
      ['wmt', *WORKLOADS],
    ),
    (
      'lab.launch',
      ['--workloads', 'local', '--submissions', 'nope', *LAUNCH],
      ['nadamw_ema'],
    ),
    ('lab.export', ['nope', '--output', '/tmp/x'], ['nadamw_ema']),
    ('lab.offline', ['nope'], ['average', 'sweep']),
    (
      'lab.offline',
      ['average', '--scheme', 'nope', '--checkpoints', 'x', '--output', 'y'],
      ['lawa', 'ema', 'polynomial', 'posthoc'],
    ),
    (
      'lab.offline',
      ['sweep', '--run', 'x', '--workload', 'nope', '--windows', '2'],
      WORKLOADS,
    ),
  ],
  ids=lambda value: value if isinstance(value, str) else '',
)
def test_an_unknown_name_lists_those_that_exist(module, arguments, names):
  status, error = outcome(module, arguments)
  assert_one_line(status, error)
  for name in names:
    assert name in error


def test_errors_of_the_file_system_are_one_line(capsys):
  def full():
    raise OSError(28, 'No space left on device')

  with pytest.raises(SystemExit) as ended:
    command_line.run(full)
  assert_one_line(ended.value.code, capsys.readouterr().err)


def test_other_errors_keep_their_traceback():
  def broken():
    raise KeyError('a fault of the program')

  with pytest.raises(KeyError):
    command_line.run(broken)


def test_names_are_checked_and_all_stands_for_all():
  assert command_line.names_of('all', ['a', 'b'], 'letters') == ['a', 'b']
  with pytest.raises(InputError, match=r"letters='c'. Must be all or among a"):
    command_line.names_of('a,c', ['a', 'b'], 'letters')
  with pytest.raises(InputError, match='a is given twice'):
    command_line.names_of('a, a', ['a', 'b'], 'letters')
