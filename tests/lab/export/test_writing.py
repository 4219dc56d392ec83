"""Folders of an export: replaced when told, never by halves."""

import os
import pathlib
import subprocess
import sys

import pytest
from exported_runs import ROOT

from lab.core.errors import InputError
from lab.export import exporter


def tree(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


def call(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'lab.export', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_existing_folders_are_replaced_only_when_told(tmp_path):
  files = {'submission.py': 'new\n'}
  target = tmp_path / 'external_tuning' / 'one'
  exporter.write({'external_tuning/one': files}, tmp_path)
  (target / 'stale.py').write_text('old\n')
  before = tree(tmp_path)
  with pytest.raises(InputError, match=r'exists\. Use --overwrite'):
    exporter.write({'external_tuning/one': files}, tmp_path)
  assert tree(tmp_path) == before
  exporter.write({'external_tuning/one': files}, tmp_path, overwrite=True)
  assert tree(tmp_path) == {'external_tuning/one/submission.py': b'new\n'}


def test_what_is_not_an_export_is_never_replaced(tmp_path):
  target = tmp_path / 'external_tuning' / 'one'
  target.mkdir(parents=True)
  (target / 'thesis.tex').write_text('years of work')
  before = tree(tmp_path)
  with pytest.raises(InputError, match='Must be an exported submission'):
    exporter.write({'external_tuning/one': {}}, tmp_path, overwrite=True)
  assert tree(tmp_path) == before


def test_one_bad_folder_stops_all_and_writes_nothing(tmp_path):
  (tmp_path / 'external_tuning' / 'b').mkdir(parents=True)
  exports = {f'external_tuning/{n}': {'submission.py': ''} for n in 'abc'}
  with pytest.raises(InputError):
    exporter.write(exports, tmp_path)
  assert tree(tmp_path) == {}


def test_a_failed_write_leaves_the_earlier_export(tmp_path, monkeypatch):
  exporter.write({'x/one': {'submission.py': 'old\n'}}, tmp_path)
  before = tree(tmp_path)

  def full(path, text, encoding):
    raise OSError('No space left on device')

  monkeypatch.setattr(pathlib.Path, 'write_text', full)
  with pytest.raises(OSError, match='No space left'):
    exporter.write(
      {'x/one': {'submission.py': 'new'}}, tmp_path, overwrite=True
    )
  assert tree(tmp_path) == before
  assert os.listdir(tmp_path) == ['x']


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
  exporter.write({'x/one': {'submission.py': 'old\n'}}, tmp_path)
  before = tree(tmp_path)
  rename = os.rename

  def refuse_new(source, target):
    if 'new' in pathlib.Path(source).parts:
      raise PermissionError('no rights')
    rename(source, target)

  monkeypatch.setattr(os, 'rename', refuse_new)
  with pytest.raises(PermissionError):
    exporter.write(
      {'x/one': {'submission.py': 'new'}}, tmp_path, overwrite=True
    )
  assert tree(tmp_path) == before


@pytest.mark.parametrize(
  ('arguments', 'part'),
  [
    (['nosuch', '--output', 'OUT'], "Invalid submission='nosuch'. Must be all"),
    (['nadamw', '--output', 'FILE'], 'is not a writable directory'),
    (['nadamw'], 'required: --output'),
    (['nadamw', '--output', 'OUT', '--ruleset', 'both'], "choice: 'both'"),
    (['nadamw', '--output', 'OUT', '--authors', 'A #1'], 'line without #'),
    (['nadamw', '--output', 'OUT', '--affiliations', '`A`'], 'line without #'),
    (['nadamw', '--output', 'OUT', '--affiliations', 'A$B'], 'line without #'),
  ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
  tmp_path, capsys, arguments, part
):
  (tmp_path / 'file').write_text('kept')
  places = {'OUT': str(tmp_path / 'out'), 'FILE': str(tmp_path / 'file')}
  with pytest.raises(InputError) as error:
    exporter.main([places.get(a, a) for a in arguments])
  assert part in str(error.value)
  assert '\n' not in str(error.value)
  assert os.listdir(tmp_path) == ['file']


def test_the_command_exits_with_1(tmp_path):
  result = call('nosuch', '--output', str(tmp_path / 'out'))
  assert result.returncode == 1
  assert len(result.stderr.splitlines()) == 1
  assert result.stderr.startswith('error: Invalid submission=')


def test_the_title_of_the_pull_request_is_printed(tmp_path, capsys):
  exporter.main(['shampoo_auto', '--output', str(tmp_path)])
  assert (
    '[submission] Distributed Shampoo + chosen average'
    in capsys.readouterr().out
  )
