"""Files are whole whoever writes them, and killed writers leave them so."""

import subprocess
import sys

import pytest
from pages import ROOT

from lab.core import atomic_files


def test_two_writers_of_one_file_do_not_take_each_others(tmp_path):
  path = tmp_path / 'a.json'

  def first(file):
    file.write('first')
    # All of another one's write, as that of a second process may be.
    atomic_files.replace(str(path), lambda file: file.write('second'))
    assert path.read_text() == 'second'

  atomic_files.replace(str(path), first)
  assert path.read_text() == 'first'
  assert [p.name for p in tmp_path.iterdir()] == ['a.json']


KILLED = """
import os, sys
from lab.core import atomic_files

def write(file):
  file.write('half')
  file.flush()
  os._exit(9)

atomic_files.replace(sys.argv[1], write)
"""


def test_what_a_killed_writer_leaves_is_found(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('before')
  # Names of others that end alike.
  for name in ('b.json.temporary', '.c.safetensors.temporary'):
    (tmp_path / name).write_text('')
  done = subprocess.run(
    [sys.executable, '-c', KILLED, str(path)], cwd=ROOT, check=False
  )
  assert done.returncode == 9
  assert path.read_text() == 'before'
  (left,) = atomic_files.leftovers(str(tmp_path))
  assert left.startswith(f'{path}.')
  with open(left) as file:
    assert file.read() == 'half'
  atomic_files.replace(str(path), lambda file: file.write('after'))
  assert path.read_text() == 'after'


def test_an_error_leaves_nothing(tmp_path):
  def fail(file):
    file.write('half')
    raise OSError(28, 'No space left on device')

  with pytest.raises(OSError, match='No space left'):
    atomic_files.replace(str(tmp_path / 'a.json'), fail)
  assert not [*tmp_path.iterdir()]


def test_a_directory_that_is_missing_has_no_leftovers(tmp_path):
  assert atomic_files.leftovers(str(tmp_path / 'none')) == []
