"""Checkpoints and measurements from which a run is resumed."""

import csv
import dataclasses
import os
import time

from launch_runs import (
  RUN,
  files_of,
  plan_of,
  scripted,
  write_checkpoint,
  write_rows,
)

from lab.core import checkpoint_files
from lab.launch import (
  benchmark,
  jobs,
  launch_plan,
  launcher,
  recovery,
)


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
  # The other trial's checkpoint lets our runner into the same directory.
  assert seen == [(RUN, True)]


def test_a_folder_is_a_complete_checkpoint_of_jax(tmp_path):
  for step in (5, 10, 15):
    (tmp_path / f'checkpoint_{step}').mkdir()
    (tmp_path / f'checkpoint_{step}' / 'array').touch()
  (tmp_path / 'checkpoint_20.orbax-checkpoint-tmp-1').mkdir()
  assert recovery.complete_steps(tmp_path) == [5, 10, 15]
  recovery.Pruner(tmp_path).prune()
  assert recovery.complete_steps(tmp_path) == [10, 15]
