"""Benchmarks look at what they are given before they measure."""

import importlib
import sys

import pytest
from lab_commands import outcome

from benchmarks import measure, swap, time_breakdown
from lab.core.errors import InputError

benchmarks = importlib.import_module('benchmarks.__main__')


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('folder', r"Invalid output='.*folder'. Must be a file."),
    ('file/bench.json', r'Cannot write to .*file: .* is not a writable dir'),
  ],
)
@pytest.mark.parametrize(
  ('command', 'names'), [(benchmarks, ['swap']), (time_breakdown, [])]
)
def test_an_output_that_cannot_be_written_ends_before_measuring(
  command, names, path, message, tmp_path, monkeypatch
):
  def measured(*arguments):
    raise AssertionError('measured')

  monkeypatch.setattr(swap, 'measure', measured)
  monkeypatch.setattr(time_breakdown, 'breakdown', measured)
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'file').write_text('')
  output = f'--output={tmp_path / path}'
  monkeypatch.setattr(sys, 'argv', ['command', *names, output])
  with pytest.raises(InputError, match=message):
    command.main()


def test_a_folder_that_does_not_exist_yet_is_made(
  tmp_path, monkeypatch, capsys
):
  ratio = measure.Ratio(0.5, 1.0, 2.0, 'another', 1)
  monkeypatch.setattr(swap, 'measure', lambda: {'swap': ratio})
  path = tmp_path / 'new' / 'bench.json'
  monkeypatch.setattr(sys, 'argv', ['command', 'swap', f'--output={path}'])
  benchmarks.main()
  assert '"ratio": 0.5' in path.read_text()
  assert 'against another' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['steps', '--seeds=x'], "Invalid seeds='x'. Must be integers in [0, inf)"),
    (['run', '--seed=-3'], 'Invalid seed=-3. Must be in [0, inf).'),
  ],
)
def test_a_seed_that_is_none_is_one_line(arguments, message):
  status, error = outcome('benchmarks.tf32', arguments)
  assert status == 1
  (line,) = error.splitlines()
  assert line.startswith(f'error: {message}')
