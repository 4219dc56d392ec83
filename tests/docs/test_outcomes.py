"""The suite of the real benchmark goes on where it was interrupted."""

import json
import os
import subprocess
import sys

import code_commit
import pytest

CONFTEST = """
import os, pathlib
import algoperf_outcomes

def pytest_configure(config):
  config.addinivalue_line('markers', 'algoperf: the real benchmark')
  path = pathlib.Path(__file__).parent / 'kept' / 'matrix.json'
  plugin = algoperf_outcomes.Outcomes(path, os.environ['COMMIT'])
  config.pluginmanager.register(plugin)
"""
TESTS = """
import os, pathlib
import pytest

@pytest.mark.algoperf
@pytest.mark.parametrize('name', ['a', 'b', 'c'])
def test_one(name):
  with (pathlib.Path(__file__).parent / 'ran').open('a') as file:
    file.write(name)
  if name == os.environ['KILLED']:
    os._exit(9)
  if name == 'c':
    pytest.skip('too large')

def test_of_something_else():
  pass
"""


def suite(folder, commit, killed=''):
  (folder / 'ran').write_text('')
  environment = os.environ | {
    'COMMIT': commit,
    'KILLED': killed,
    'PYTHONPATH': str(code_commit.ROOT / 'tests/support'),
  }
  done = subprocess.run(
    [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '.'],
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
  )
  content = json.loads((folder / 'kept' / 'matrix.json').read_text())
  outcomes = {k: v['outcome'] for k, v in content.items()}
  return done.returncode, (folder / 'ran').read_text(), content, outcomes


@pytest.mark.slow
def test_a_killed_suite_runs_only_the_tests_that_have_not_passed(tmp_path):
  (tmp_path / 'conftest.py').write_text(CONFTEST)
  (tmp_path / 'test_suite.py').write_text(TESTS)
  status, ran, _, outcomes = suite(tmp_path, 'one', killed='b')
  assert (status, ran) == (9, 'ab')
  assert outcomes == {'test_one[a]': 'passed'}
  status, ran, content, outcomes = suite(tmp_path, 'one')
  assert (status, ran) == (0, 'bc')
  assert outcomes == {
    'test_one[a]': 'passed',
    'test_one[b]': 'passed',
    'test_one[c]': 'skipped',
  }
  assert 'too large' in content['test_one[c]']['reason']
  # Other code: every test runs again, and each outcome names its commit.
  status, ran, content, outcomes = suite(tmp_path, 'two', killed='b')
  assert ran == 'ab'
  assert {k: v['commit'] for k, v in content.items()} == {
    'test_one[a]': 'two',
    'test_one[b]': 'one',
    'test_one[c]': 'one',
  }


@pytest.mark.parametrize('suite', ['tests/algoperf', 'tests/faults'])
def test_the_commit_is_the_last_that_changed_the_code(
  suite, tmp_path, monkeypatch
):
  def git(*words):
    subprocess.run(
      ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *words],
      cwd=tmp_path,
      check=True,
      capture_output=True,
    )

  def write(name, text):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    git('add', '-A')
    git('commit', '-m', name)
    return code_commit.commit(suite)

  monkeypatch.setattr(code_commit, 'ROOT', tmp_path)
  git('init')
  first = write('weightavg/a.py', '1')
  assert len(first) == 12
  assert write('results/b.json', '1') == first
  second = write('weightavg/a.py', '2')
  assert second != first
  (tmp_path / 'weightavg/a.py').write_text('3')
  assert code_commit.commit(suite) == f'{second}-dirty'
