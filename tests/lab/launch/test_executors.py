"""Slurm and submitit: arrays, nodes, a stopped and a killed study."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from launch_runs import LOCAL, ROOT, RUN, files_of, parse, plan_of, scripted

from lab.core.errors import InputError
from lab.launch import (
  executors,
  jobs,
  launch_plan,
  launcher,
)

# Its logger keeps the stderr that it is imported with: not one that a test
# captures, which is closed.
submitit = pytest.importorskip('submitit')

SBATCH = """#!/bin/sh
cp "$1" "$(dirname "$0")/script"
echo Submitted batch job 51234
"""


def test_a_slurm_job_knows_where_its_nodes_meet(tmp_path, monkeypatch):
  plan = plan_of(tmp_path, *LOCAL, '--nodes=3', '--processes_per_node=2')
  for name, value in {
    'SUBMITIT_EXECUTOR': 'slurm',
    'SLURM_JOB_ID': '51234',
    'SLURM_JOB_NODELIST': 'gpu[07-09]',
    'SLURM_JOB_NUM_NODES': '3',
    'SLURM_NODEID': '2',
  }.items():
    monkeypatch.setenv(name, value)
  for name in ('SLURM_ARRAY_JOB_ID', 'SLURM_ARRAY_TASK_ID'):
    monkeypatch.delenv(name, raising=False)
  rendezvous = jobs.rendezvous_of(plan)
  assert rendezvous == launch_plan.Rendezvous(
    'gpu07:21234', '51234', is_host=False
  )
  monkeypatch.setenv('SLURM_NODEID', '0')
  assert jobs.rendezvous_of(plan).is_host


def test_a_stopped_job_ends_its_processes_and_is_submitted_again(tmp_path):
  plan, files = plan_of(tmp_path), files_of(tmp_path)
  job = jobs.Job(plan, RUN, files)
  job._process = subprocess.Popen(
    [sys.executable, '-c', 'import time; time.sleep(600)']
  )
  again = job.checkpoint()
  assert job._process.poll() is not None
  assert isinstance(again, submitit.helpers.DelayedSubmission)
  assert (again.function.plan, again.function.run) == (plan, RUN)


@pytest.fixture
def no_deadlock():
  """End a test that would hang."""

  def end(number, frame):
    raise AssertionError('deadlock')

  before = signal.signal(signal.SIGALRM, end)
  signal.alarm(120)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures('no_deadlock')
def test_a_signal_stops_a_job_that_waits(tmp_path, monkeypatch):
  """Submitit handles signals in the thread in which the job waits."""
  scripted(monkeypatch, 'import time; time.sleep(600)')
  job, again = jobs.Job(plan_of(tmp_path), RUN, files_of(tmp_path)), []

  def handle(number, frame):
    again.append(job.checkpoint())
    sys.exit(-1)

  def preempt():
    while job._process is None:
      time.sleep(0.01)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGUSR2)

  before = signal.signal(signal.SIGUSR2, handle)
  try:
    threading.Thread(target=preempt).start()
    with pytest.raises(SystemExit):
      job()
  finally:
    signal.signal(signal.SIGUSR2, before)
  assert job._process.returncode == -signal.SIGTERM
  assert [submission.function.run for submission in again] == [RUN]
  assert not jobs.is_running(files_of(tmp_path), RUN)


@pytest.mark.usefixtures('no_deadlock')
def test_a_job_is_stopped_inside_of_a_method_of_popen(tmp_path):
  job = jobs.Job(plan_of(tmp_path), RUN, files_of(tmp_path))
  job._process = subprocess.Popen(
    [sys.executable, '-c', 'import time; time.sleep(600)']
  )
  with job._process._waitpid_lock:
    job.checkpoint()
  assert job._process.wait() == -signal.SIGTERM


def test_slurm_is_asked_for_by_name(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', '')
  _, plan, runs = parse(tmp_path, *LOCAL)
  files = files_of(tmp_path)
  with pytest.raises(InputError, match='no command sbatch'):
    executors.submit(plan, runs, files, 'slurm', {})
  with pytest.raises(InputError, match="Invalid slurm='gpu'"):
    executors.submit(plan, runs, files, 'slurm', {}, ['gpu'])
  assert os.listdir(tmp_path) == []


def submitted(tmp_path, monkeypatch, *options):
  """The script that a fake sbatch was given."""
  commands = tmp_path / 'bin'
  commands.mkdir()
  for name in ('sbatch', 'srun'):
    (commands / name).write_text(SBATCH)
    (commands / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{commands}{os.pathsep}{os.environ["PATH"]}')
  arguments = [*LOCAL, '--executor=slurm', '--studies=2', '--trials=2']
  arguments += ['--nodes=2', '--gpus_per_node=4', *options]
  launcher.main([*arguments, f'--experiment_dir={tmp_path / "runs"}'])
  return (commands / 'script').read_text()


def test_a_study_is_one_slurm_array(tmp_path, monkeypatch, capsys):
  script = submitted(tmp_path, monkeypatch, '--slurm=partition=gpu')
  for line in (
    '#SBATCH --array=0-3%4',
    '#SBATCH --nodes=2',
    '#SBATCH --ntasks-per-node=1',
    '#SBATCH --gpus-per-node=4',
    '#SBATCH --partition=gpu',
    '#SBATCH --time=2880',
  ):
    assert line in script.splitlines()
  assert '--kill-on-bad-exit=1' in script
  record = json.loads(files_of(tmp_path).record(RUN).read_text())
  assert record == {'job_id': '51234_0', 'exit_status': None}
  # What scoring reads holds runs only.
  assert not (tmp_path / 'runs').exists()
  assert 'warning: Slurm may give each job one CPU' in capsys.readouterr().err


@pytest.mark.parametrize('key', ['cpus-per-task', 'cpus_per_task'])
def test_cpus_are_asked_for_twice(tmp_path, monkeypatch, capsys, key):
  """Since Slurm 22.05 srun takes one CPU, whatever sbatch was given."""
  script = submitted(tmp_path, monkeypatch, f'--slurm={key}=48')
  (command,) = [line for line in script.splitlines() if line[:5] == 'srun ']
  assert '#SBATCH --cpus-per-task=48' in script
  assert ' --cpus-per-task=48 ' in command
  assert 'warning' not in capsys.readouterr().err


@pytest.mark.slow
def test_submitit_runs_a_trial_of_a_local_workload(tmp_path):
  _, plan, runs = parse(
    tmp_path,
    *LOCAL,
    '--studies=1',
    '--trials=1',
    '--max_global_steps=3',
    '--processes_per_node=0',
  )
  files = files_of(tmp_path)
  options = {'timeout_min': 30}
  (job,) = executors.submit(plan, runs, files, 'local', options)
  assert job.result() == 0, files.log(RUN).read_text()
  found = launcher.states(plan, runs, files)
  assert found == {RUN: ('finished', '')}
  assert launch_plan.last_evaluation(plan.directory(RUN)) == 3


@pytest.mark.slow
def test_two_nodes_meet_and_train(tmp_path):
  _, plan, (run,) = parse(
    tmp_path,
    *LOCAL,
    '--studies=1',
    '--trials=1',
    '--max_global_steps=3',
    '--nodes=2',
    '--processes_per_node=1',
  )
  nodes = [
    subprocess.Popen(
      launch_plan.executable(
        launch_plan.command(
          plan,
          run,
          rendezvous=launch_plan.Rendezvous('127.0.0.1:29417', 'two', is_host),
        )
      ),
      cwd=plan.root,
      stderr=subprocess.PIPE,
      text=True,
    )
    for is_host in (True, False)
  ]
  errors = [node.communicate()[1] for node in nodes]
  assert [node.returncode for node in nodes] == [0, 0], errors
  assert launch_plan.state_of(plan, run) == 'finished'


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(tmp_path):
  command = [
    *(sys.executable, '-m', 'lab.launch', *LOCAL),
    *('--studies=1', '--trials=2', '--max_global_steps=200'),
    f'--experiment_dir={tmp_path / "runs"}',
    *('--', '--eval_every_steps=20'),
  ]
  plan = plan_of(tmp_path, *LOCAL, '--trials=2', '--max_global_steps=200')
  second = dataclasses.replace(RUN, trial=2)
  launcher = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
  while launch_plan.state_of(plan, second) == 'waiting':
    assert launcher.poll() is None
    time.sleep(0.05)
  os.killpg(launcher.pid, signal.SIGKILL)
  launcher.wait()
  assert launch_plan.state_of(plan, second) == 'cut off'
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
  assert '1 of 2 runs done or under way.' in done.stdout
  assert launch_plan.state_of(plan, second) == 'finished'
  assert (plan.directory(second) / 'flags_1.json').exists()
  assert not (plan.directory(RUN) / 'flags_1.json').exists()
