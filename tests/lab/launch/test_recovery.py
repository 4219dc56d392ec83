"""Checkpoints and measurements from which a run is resumed."""

import csv
import dataclasses
import os
import time

import numpy as np
import pytest
from launch_runs import (
  RUN,
  files_of,
  plan_of,
  scripted,
  write_checkpoint,
  write_rows,
)

from lab.core import checkpoint_files, logs
from lab.launch import (
  benchmark,
  jobs,
  launch_plan,
  launcher,
  recovery,
)
from lab.run import checkpoints
from lab.run.run_state import RunState


def test_a_cut_off_run_resumes_from_its_last_whole_checkpoint(
  tmp_path, monkeypatch
):
  seen = []
  scripted(monkeypatch, 'pass', seen)
  plan = plan_of(tmp_path)
  whole = write_checkpoint(plan, RUN, 5)
  write_checkpoint(plan, RUN, 10, whole=False)
  files = files_of(tmp_path)
  (state, note) = launcher.states(plan, [RUN], files)[RUN]
  assert state == 'cut off'
  assert note == 'checkpoint_10 incomplete, resumes from step 5; '
  jobs.Job(plan, RUN, files)()
  assert seen == [(RUN, True)]
  names = sorted(os.listdir(plan.directory(RUN)))
  assert names == ['broken_checkpoint_10', whole.name]


def test_an_incomplete_checkpoint_alone_is_nothing_to_resume_from(tmp_path):
  plan = plan_of(tmp_path)
  write_checkpoint(plan, RUN, 5, whole=False)
  assert launch_plan.state_of(plan, RUN) == 'waiting'


def test_measurements_after_the_checkpoint_are_dropped(tmp_path):
  plan = plan_of(tmp_path)
  write_checkpoint(plan, RUN, 20)
  directory = plan.directory(RUN)
  write_rows(directory / 'eval_measurements.csv', [10, 20, 30])
  write_rows(directory / 'measurements.csv', [1, 20, 21, 29, 30])
  jobs.clear(plan, RUN)
  for name, steps in (
    ('eval_measurements.csv', ['10', '20']),
    ('measurements.csv', ['1', '20']),
  ):
    with open(directory / name, newline='') as file:
      rows = list(csv.DictReader(file))
    assert [row['global_step'] for row in rows] == steps
    assert rows[0]['loss'] == 'a,b'
  before = (directory / 'measurements.csv').stat().st_mtime_ns
  jobs.clear(plan, RUN)
  assert (directory / 'measurements.csv').stat().st_mtime_ns == before
  assert sorted(os.listdir(directory)) == [
    'checkpoint_20',
    'eval_measurements.csv',
    'measurements.csv',
  ]


def test_the_update_after_the_checkpoint_is_logged_once(tmp_path):
  """An update logs the number of updates before itself."""
  plan = plan_of(tmp_path)
  write_checkpoint(plan, RUN, 20)
  path = plan.directory(RUN) / 'measurements.csv'
  path.write_text(
    'global_step,loss,total_duration,averaging_choice\n'
    '19,1.5,,\n20,,,1\n20,,7.5,\n20,1.25,,\n21,1.0,,\n'
  )
  jobs.clear(plan, RUN)
  assert path.read_text().split() == [
    'global_step,loss,total_duration,averaging_choice',
    '19,1.5,,',
    '20,,,1',
    '20,,7.5,',
  ]


def test_the_last_two_complete_checkpoints_stay(tmp_path):
  plan = plan_of(tmp_path)
  directory = plan.directory(RUN)
  pruner = recovery.Pruner(directory)
  pruner.prune()  # before the benchmark has made the directory
  for step in (5, 10):
    write_checkpoint(plan, RUN, step)
  write_checkpoint(plan, RUN, 15, whole=False)
  # One that is being written does not count.
  pruner.prune()
  assert checkpoint_files.steps(str(directory)) == [5, 10, 15]
  write_checkpoint(plan, RUN, 15)
  pruner.prune()
  assert checkpoint_files.steps(str(directory)) == [10, 15]


def test_old_checkpoints_are_deleted_while_the_benchmark_runs(
  tmp_path, monkeypatch
):
  plan = plan_of(tmp_path)
  run = dataclasses.replace(RUN, workload='mnist')
  monkeypatch.setattr(benchmark, 'check_data', lambda *_: None)
  scripted(monkeypatch, 'pass')
  for step in (5, 10, 15):
    write_checkpoint(plan, run, step)
  jobs.Job(plan, run, files_of(tmp_path))()
  directory = plan.directory(run)
  assert checkpoint_files.steps(str(directory)) == [10, 15]
  # The laboratory's runner does so itself, and --keep_checkpoints asks not to.
  write_checkpoint(plan, run, 20)
  kept = dataclasses.replace(plan, keep_checkpoints=True)
  jobs.Job(kept, run, files_of(tmp_path))()
  assert checkpoint_files.steps(str(directory)) == [10, 15, 20]
  with recovery.Pruner(directory, every=0.01):
    while len(checkpoint_files.steps(str(directory))) > 2:
      time.sleep(0.01)


def test_what_a_run_without_a_checkpoint_left_is_not_added_to(
  tmp_path, monkeypatch
):
  seen = []
  scripted(monkeypatch, 'pass', seen)
  plan = plan_of(tmp_path)
  other = dataclasses.replace(RUN, trial=2)
  kept = write_checkpoint(plan, other, 5)
  write_checkpoint(plan, RUN, 5, whole=False)
  (plan.directory(RUN) / 'eval_measurements.csv').write_text('global_step\n1\n')
  jobs.Job(plan, RUN, files_of(tmp_path))()
  assert not plan.directory(RUN).exists()
  assert kept.exists()
  # Our runner starts beside another trial, with or without its checkpoint.
  assert seen == [(RUN, False)]


def test_a_folder_is_a_complete_checkpoint_of_jax(tmp_path):
  for step in (5, 10, 15):
    (tmp_path / f'checkpoint_{step}').mkdir()
    (tmp_path / f'checkpoint_{step}' / 'array').touch()
  (tmp_path / 'checkpoint_20.orbax-checkpoint-tmp-1').mkdir()
  assert recovery.complete_steps(tmp_path) == [5, 10, 15]
  recovery.Pruner(tmp_path).prune()
  assert recovery.complete_steps(tmp_path) == [10, 15]


def test_a_checkpoint_of_our_runner_in_jax_is_resumed_from(tmp_path):
  """It is one file, and no zip file."""
  pytest.importorskip('flax')
  plan = plan_of(tmp_path)
  run = dataclasses.replace(RUN, submission='nadamw_ema_jax')
  directory = plan.directory(run)
  directory.mkdir(parents=True)
  weights = {'w': np.ones(3, np.float32)}
  state = RunState((weights, None), weights, {}, global_step=5)
  path = checkpoints.save(state, str(directory))
  assert launch_plan.state_of(plan, run) == 'cut off'
  jobs.clear(plan, run)
  assert os.path.exists(path)
  with open(path, 'r+b') as file:
    file.truncate(os.path.getsize(path) - 1)
  assert launch_plan.state_of(plan, run) == 'waiting'


ROWS = b'global_step,total_duration,score\n5,1.0,0.5\n10,2.0,1.0\n'


@pytest.mark.parametrize(
  ('rest', 'is_kept_aside'),
  [
    pytest.param(b'15,', False, id='short last line'),
    pytest.param(b'15,3.0,1', False, id='last line without its end'),
    pytest.param(b'15,315,3.0,1.5\n', False, id='too many cells at the end'),
    pytest.param(b'153.0\n20,4.0,2.0\n', True, id='short line'),
    pytest.param(b'\xff\xfe\x00\n', False, id='no UTF-8'),
    pytest.param(b'20,4.0,2.0\n\xff,1,\n', False, id='no step'),
  ],
)
def test_torn_and_damaged_lines_are_dropped(tmp_path, rest, is_kept_aside):
  plan = plan_of(tmp_path)
  write_checkpoint(plan, RUN, 10)
  path = plan.directory(RUN) / logs.EVAL_MEASUREMENTS
  path.write_bytes(ROWS + rest)
  assert launch_plan.last_evaluation(plan.directory(RUN)) in (10, 20, None)
  jobs.clear(plan, RUN)
  assert path.read_bytes().split() == ROWS.split()
  aside = path.with_name(f'{path.name}.damaged')
  assert aside.exists() == is_kept_aside


def test_a_step_that_is_cut_is_no_step(tmp_path):
  plan = plan_of(tmp_path)
  write_checkpoint(plan, RUN, 100)
  path = plan.directory(RUN) / logs.EVAL_MEASUREMENTS
  path.write_text('score,global_step\n1.0,50\n2.0,15')
  jobs.clear(plan, RUN)
  assert path.read_text().split() == ['score,global_step', '1.0,50']


def test_the_state_of_a_run_with_a_damaged_log_is_found(tmp_path):
  plan = plan_of(tmp_path)
  write_checkpoint(plan, RUN, 10)
  for name in (logs.MEASUREMENTS, logs.EVAL_MEASUREMENTS):
    (plan.directory(RUN) / name).write_bytes(ROWS + b'\xff\n')
  found = launcher.states(plan, [RUN], files_of(tmp_path))
  assert found[RUN][0] == 'cut off'
  assert 'cut off            10' in launcher.table(plan, found)
