"""The launcher: states, locks, and runs that are not run twice."""

import json
import subprocess
import sys

import pytest
from launch_runs import (
  LOCAL,
  RUN,
  files_of,
  parse,
  plan_of,
  scripted,
  write_checkpoint,
  write_end,
)

from lab.core.errors import InputError
from lab.launch import (
  checks,
  executors,
  jobs,
  launch_plan,
  launcher,
)
from lab.launch.launch_plan import Run

FINISHES = """
import os, sys
folder = sys.argv[1]
os.makedirs(folder)
with open(os.path.join(folder, 'measurements.csv'), 'w') as file:
  file.write('score,total_duration\\n3.5,\\n')
"""


def test_states_come_from_what_the_runs_left(tmp_path):
  plan, files = plan_of(tmp_path), files_of(tmp_path)
  runs = [Run('nadamw_ema', 'click_dlrm', 0, k) for k in range(1, 7)]
  write_end(plan, runs[0])
  write_checkpoint(plan, runs[1], 5)
  jobs.update_record(files, runs[2], exit_status=1)
  write_checkpoint(plan, runs[3], 5)
  jobs.update_record(files, runs[3], exit_status=-9)
  with jobs.held(files.lock(runs[4])):
    found = launcher.states(plan, runs, files)
    text = launcher.table(plan, found)
  assert [state for state, _ in found.values()] == [
    'finished',
    'cut off',
    'failed',
    'cut off',
    'running',
    'waiting',
  ]
  assert 'exit status -9' in found[runs[3]][1]
  assert '6 runs: 1 finished, 2 cut off, 1 failed, 1 running' in text
  (line,) = [line for line in text.splitlines() if 'finished ' in line][:1]
  assert line.split()[:4] == ['nadamw_ema', 'click_dlrm', '0', '1']
  assert line.split()[4:] == ['finished', '5', '12.5']


def test_the_status_says_that_the_benchmark_cannot_resume_jax(tmp_path):
  plan, files = plan_of(tmp_path), files_of(tmp_path)
  runs = [
    Run('nadamw_ema', 'ogbg', 0, 1),
    Run('nadamw_ema_jax', 'ogbg', 0, 1),
    Run('nadamw_ema_jax', 'stdlib_lm', 0, 1),
  ]
  for run in runs:
    write_checkpoint(plan, run, 5)
  notes = [note for _, note in launcher.states(plan, runs, files).values()]
  assert ['cannot resume JAX' in note for note in notes] == [False, True, False]


def test_an_evaluation_at_the_end_is_not_the_end(tmp_path):
  plan = plan_of(tmp_path)
  write_end(plan, RUN)
  path = plan.directory(RUN) / 'measurements.csv'
  lines = path.read_text().splitlines()
  path.write_text('\n'.join(lines[:-1]) + '\n')
  assert launch_plan.state_of(plan, RUN) == 'waiting'


@pytest.mark.parametrize('score', ['x12.5', '', 'nan'])
def test_a_damaged_score_is_not_the_end(tmp_path, score):
  plan, files = plan_of(tmp_path), files_of(tmp_path)
  write_end(plan, RUN)
  path = plan.directory(RUN) / 'measurements.csv'
  text = path.read_text()
  assert text.count('12.5') == 1
  path.write_text(text.replace('12.5', score))
  files.record(RUN).parent.mkdir(parents=True, exist_ok=True)
  files.record(RUN).write_text('[1]')
  found = launcher.states(plan, [RUN], files)
  assert found == {RUN: ('waiting', '')}
  assert RUN.workload in launcher.table(plan, found)
  jobs.update_record(files, RUN, exit_status=1)
  assert json.loads(files.record(RUN).read_text()) == {'exit_status': 1}


def test_a_printed_command_replaces_what_cannot_be_resumed(tmp_path, capsys):
  _, plan, (run,) = parse(tmp_path, *LOCAL, '--studies=1', '--trials=1')

  def flags():
    executors.show(plan, [run])
    words = capsys.readouterr().out.split()
    return {'--overwrite', '--resume_last_run'} & {*words}

  assert flags() == set()
  plan.directory(run).mkdir(parents=True)
  (plan.directory(run) / 'checkpoint_3').write_text('cut')
  assert flags() == {'--overwrite'}
  write_checkpoint(plan, run, 5)
  assert flags() == {'--resume_last_run'}


def test_finished_runs_are_not_run_again(tmp_path, monkeypatch, capsys):
  seen = []
  scripted(monkeypatch, FINISHES, seen)
  _, plan, runs = parse(tmp_path, *LOCAL, '--studies=2', '--trials=2')
  files = files_of(tmp_path)
  write_end(plan, runs[1])
  todo = [
    run
    for run, (state, _) in launcher.states(plan, runs, files).items()
    if state != 'finished'
  ]
  assert executors.run_here(plan, todo, files) == 0
  assert [run for run, _ in seen] == [runs[0], *runs[2:]]
  found = launcher.states(plan, runs, files)
  assert {state for state, _ in found.values()} == {'finished'}
  record = json.loads(files.record(runs[0]).read_text())
  assert record['exit_status'] == 0
  # Even a job that was submitted before does nothing any more.
  assert jobs.Job(plan, runs[0], files)() == 0
  assert len(seen) == 3


def test_a_failed_run_is_named_and_the_others_go_on(
  tmp_path, monkeypatch, capsys
):
  scripted(monkeypatch, 'import sys; sys.exit("error: no such thing")')
  _, plan, runs = parse(tmp_path, *LOCAL, '--studies=1', '--trials=2')
  assert executors.run_here(plan, runs, files_of(tmp_path)) == 1
  out = capsys.readouterr().out
  assert out.count('failed: error: no such thing') == 2
  assert '2 of 2 runs failed.' in out
  found = launcher.states(plan, runs, files_of(tmp_path))
  assert {state for state, _ in found.values()} == {'failed'}


TORCHRUN = """
import sys
print('error: no such thing')
print('raise ChildFailedError(')
print('torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ')
print('  traceback : To enable traceback see: https://errors.html')
sys.exit(1)
"""


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    (TORCHRUN, 'error: no such thing'),
    (TORCHRUN.replace('error: no', '[rank0]: ValueError: no'), None),
    ('import sys; sys.exit("An error of ours")', 'An error of ours'),
    ('import sys; sys.exit("Killed")', 'Killed'),
    ('import sys; sys.exit(1)', ''),
  ],
)
def test_the_reason_is_the_runs_own_line_of_this_attempt(
  tmp_path, monkeypatch, capsys, text, reason
):
  scripted(monkeypatch, text)
  plan, files = plan_of(tmp_path), files_of(tmp_path)
  files.log(RUN).parent.mkdir(parents=True)
  files.log(RUN).write_text('error: of an attempt before\n')
  assert executors.run_here(plan, [RUN], files) == 1
  expected = '[rank0]: ValueError: no such thing' if reason is None else reason
  assert f'  failed: {expected}\n' in capsys.readouterr().out


def test_a_run_that_cannot_start_does_not_stop_the_others(
  tmp_path, monkeypatch, capsys
):
  seen = []
  scripted(monkeypatch, FINISHES, seen)
  _, plan, runs = parse(tmp_path, *LOCAL, '--studies=1', '--trials=2')
  files = files_of(tmp_path)
  with jobs.held(files.lock(runs[0])):
    assert executors.run_here(plan, runs, files) == 1
  assert [run for run, _ in seen] == runs[1:]
  out = capsys.readouterr().out
  assert f'  not started: {runs[0].name} is running already.' in out
  assert out.endswith('1 of 2 runs were not started.\n')


def test_a_signal_ends_the_study_with_a_word(tmp_path, monkeypatch, capsys):
  def stop(job):
    raise SystemExit(143)

  monkeypatch.setattr(jobs.Job, '__call__', stop)
  _, plan, runs = parse(tmp_path, *LOCAL, '--studies=1', '--trials=2')
  with pytest.raises(SystemExit, match='143'):
    executors.run_here(plan, runs, files_of(tmp_path))
  out = capsys.readouterr().out
  assert out.count('/trial_') == 1
  assert 'stopped. The same command goes on.' in out


def test_no_run_starts_twice_even_if_its_launcher_is_killed(tmp_path):
  plan, files = plan_of(tmp_path), files_of(tmp_path)
  with jobs.held(files.lock(RUN)) as lock:
    child = subprocess.Popen(
      [sys.executable, '-c', 'input()'],
      stdin=subprocess.PIPE,
      pass_fds=(lock,),
    )
    with pytest.raises(InputError, match='is running already'):
      jobs.Job(plan, RUN, files)()
  # Here the launcher is gone; its child is the run.
  assert jobs.is_running(files, RUN)
  child.communicate(b'\n')
  assert not jobs.is_running(files, RUN)


def test_the_lock_is_handed_on_to_the_run(tmp_path, monkeypatch):
  text = (
    'import os, sys\n'
    'names = [os.path.realpath(f"/proc/self/fd/{n}") for n in range(3, 64)]\n'
    'sys.exit(0 if any(name.endswith(".lock") for name in names) else 1)\n'
  )
  scripted(monkeypatch, text)
  assert jobs.Job(plan_of(tmp_path), RUN, files_of(tmp_path))() == 0


def exported(tmp_path):
  from lab.export import exporter

  folder = tmp_path / 'exported'
  exporter.main(['nadamw_ema', '--output', str(folder)])
  return folder


def test_exported_submissions_are_run_from_their_folder(tmp_path, monkeypatch):
  folder = exported(tmp_path)
  monkeypatch.syspath_prepend(str(folder))
  _, plan, runs = parse(
    tmp_path,
    '--submissions=all',
    '--workloads=ogbg',
    f'--export_dir={folder}',
    '--gpus_per_node=1',
  )
  checks._check_submissions(plan, runs)
  words = launch_plan.command(plan, runs[0])
  for name in ('submission_path', 'tuning_search_space'):
    (path,) = [w.partition('=')[2] for w in words if w.startswith(f'--{name}=')]
    assert path.startswith('external_tuning/nadamw_ema/')
    assert (plan.root / path).is_file()


def test_an_exported_submission_trains_on_a_local_workload(tmp_path):
  """Without algoperf it brings its own copy of the benchmark's types."""
  _, plan, (run,) = parse(
    tmp_path,
    '--submissions=nadamw_ema',
    '--workloads=click_dlrm',
    f'--export_dir={exported(tmp_path)}',
    '--studies=1',
    '--trials=1',
    '--max_global_steps=3',
    '--processes_per_node=0',
  )
  files = files_of(tmp_path)
  assert jobs.Job(plan, run, files)() == 0, files.log(run).read_text()
  assert launch_plan.last_evaluation(plan.directory(run)) == 3
