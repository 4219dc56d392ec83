"""One run at a time in an experiment directory."""

import json
import os
import signal
import subprocess
import sys

import fakes
import pytest

from lab.core.errors import InputError
from lab.run import experiment_lock
from lab.run.experiment_lock import ExperimentLock

HOLD = """
import sys, time
from lab.run.experiment_lock import ExperimentLock
with ExperimentLock(sys.argv[1]).held():
  print('held', flush=True)
  time.sleep(600)
"""


@pytest.fixture
def directory(tmp_path):
  return str(tmp_path / 'runs' / 'x' / 'fake_pytorch')


@pytest.fixture
def holder(directory):
  """A process that holds the lock until it is killed."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, directory],
    stdout=subprocess.PIPE,
    env=fakes.environment(),
  )
  assert process.stdout.readline() == b'held\n'
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def test_names_the_process_that_holds_it(directory, holder):
  for enter in (ExperimentLock(directory).check, take(directory)):
    with pytest.raises(InputError, match=f'process {holder.pid} on .*Wait'):
      enter()


def take(directory):
  def enter():
    with ExperimentLock(directory).held():
      pass

  return enter


def test_a_dead_process_does_not_keep_it(directory, holder):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  ExperimentLock(directory).check()
  take(directory)()


def test_a_check_writes_nothing(directory, tmp_path):
  ExperimentLock(directory).check()
  assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_before_it_writes(
  tmp_path, directory, holder, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  fakes.register(monkeypatch)
  (tmp_path / 'space.json').write_text(json.dumps(fakes.POINTS))
  fakes.write_submission(tmp_path)
  before = fakes.tree(tmp_path)
  for flags in ({}, {'overwrite': True}, {'resume_last_run': True}):
    with pytest.raises(InputError, match='runs/x/fake_pytorch is in use by'):
      fakes.run(tmp_path, **flags)
  assert fakes.tree(tmp_path) == before


def test_the_holder_of_another_machine_is_named(directory, caplog):
  path = experiment_lock.path_of(directory)
  os.makedirs(os.path.dirname(path))
  with open(path, 'w') as file:
    file.write('process 7 on elsewhere\n')
  with ExperimentLock(directory).held():
    assert 'process 7 on elsewhere, has not ended properly' in caplog.text
  # A proper end leaves no holder.
  assert os.path.getsize(path) == 0


@pytest.mark.parametrize(
  ('line', 'expected'),
  [
    ('server:/x {} nfs4 rw,vers=4.2 0 0', ('nfs4', False)),
    ('server:/x {} nfs rw,nolock 0 0', ('nfs', True)),
    ('server:/x {} lustre rw,localflock 0 0', ('lustre', True)),
  ],
)
def test_says_where_a_lock_does_not_reach_other_machines(
  tmp_path, line, expected
):
  table = tmp_path / 'mounts'
  table.write_text(f'/dev/a / ext4 rw 0 0\n{line.format(tmp_path / "runs")}\n')
  kind, options = experiment_lock.mount_of(
    str(tmp_path / 'runs' / 'x'), str(table)
  )
  is_local = bool(options & experiment_lock.LOCAL_OPTIONS)
  assert (kind, is_local) == expected
  assert experiment_lock.mount_of(str(tmp_path), str(table))[0] == 'ext4'
