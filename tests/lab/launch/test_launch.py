"""The launcher: commands, states, resumption, submitit, errors."""

import csv
import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from lab.core import checkpoint_files
from lab.core.errors import InputError
from lab.launch import (
  benchmark,
  checks,
  executors,
  jobs,
  launch_plan,
  launcher,
  recovery,
)
from lab.launch.launch_plan import Run

ROOT = pathlib.Path(__file__).parents[3]
LOCAL = ['--submissions=nadamw_ema', '--workloads=click_dlrm']
RUN = Run('nadamw_ema', 'click_dlrm', study=0, trial=1)


def parse(tmp_path, *arguments):
  words = [f'--experiment_dir={tmp_path / "runs"}', *arguments]
  return launcher.parse(words)


def plan_of(tmp_path, *arguments):
  return parse(tmp_path, *(arguments or LOCAL))[1]


def files_of(tmp_path):
  return jobs.Files(tmp_path / 'runs_jobs')


def words_of(tmp_path, *arguments, rendezvous=None):
  _, plan, runs = parse(tmp_path, *arguments)
  return launch_plan.command(plan, runs[0], rendezvous=rendezvous)


def write_end(plan, run, score='12.5'):
  """The logs that a finished run leaves."""
  directory = plan.directory(run)
  directory.mkdir(parents=True, exist_ok=True)
  rows = [
    {'global_step': '2', 'loss': '1.0', 'score': '', 'total_duration': ''},
    {'global_step': '5', 'loss': '', 'score': '9', 'total_duration': '10'},
    {'global_step': '5', 'loss': '', 'score': score, 'total_duration': ''},
  ]
  for name, chosen in (
    ('measurements.csv', rows),
    ('eval_measurements.csv', rows[1:2]),
  ):
    with open(directory / name, 'w', newline='') as file:
      writer = csv.DictWriter(file, list(rows[0]))
      writer.writeheader()
      writer.writerows(chosen)


def write_checkpoint(plan, run, step, whole=True):
  directory = plan.directory(run)
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / f'checkpoint_{step}'
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('data', 'x' * 1000)
  if not whole:
    path.write_bytes(path.read_bytes()[:-200])
  return path


def test_the_matrix_is_whole_and_each_trial_a_job(tmp_path):
  _, plan, runs = parse(
    tmp_path,
    '--submissions=nadamw,nadamw_lawa',
    '--workloads=wmt,fastmri',
    '--studies=3',
  )
  assert len(runs) == 2 * 2 * 3 * 5 == len(set(runs))
  assert {run.study for run in runs[:20]} == {0}
  directory = plan.directory(runs[-1])
  assert directory == tmp_path.joinpath(
    'runs', 'nadamw_lawa', 'study_2', 'fastmri_pytorch', 'trial_5'
  )


def test_all_workloads_are_those_that_are_scored(tmp_path):
  _, _, runs = parse(
    tmp_path, '--submissions=all', '--workloads=all', '--studies=1'
  )
  assert {run.workload for run in runs} == {
    'criteo1tb',
    'fastmri',
    'finewebedu_lm',
    'imagenet_resnet',
    'imagenet_vit',
    'librispeech_conformer',
    'librispeech_deepspeech',
    'ogbg',
    'wmt',
  }
  assert len({run.submission for run in runs}) == len(
    list(ROOT.glob('submissions/*/submission.py'))
  )


def test_groups_and_names_of_workloads_can_be_mixed(tmp_path):
  _, _, runs = parse(
    tmp_path, '--submissions=nadamw', '--workloads=all,mnist', '--studies=1'
  )
  found = {run.workload for run in runs}
  assert found == {*benchmark.SCORED, 'mnist'}
  with pytest.raises(InputError, match='ogbg is given twice'):
    parse(tmp_path, '--submissions=nadamw', '--workloads=ogbg,all')


def test_hours_are_the_time_limits_of_the_benchmark(tmp_path):
  arguments = ['--submissions=nadamw', '--workloads=wmt,ogbg,click_dlrm']
  for ruleset, factor, trials in (('external', 1, 5), ('self', 1.5, 1)):
    _, plan, runs = parse(
      tmp_path, *arguments, f'--tuning_ruleset={ruleset}', '--studies=2'
    )
    seconds = factor * 2 * trials * (16_114 + 11_303)
    assert launcher.hours_of(plan, runs) == pytest.approx(seconds / 3600)


def test_a_benchmark_run_is_torchrun_with_the_runners_flags(tmp_path):
  words = words_of(
    tmp_path,
    '--submissions=nadamw_lawa',
    '--workloads=fastmri',
    '--gpus_per_node=4',
    '--data_dir=/data',
    '--rng_seed=3',
    '--',
    '--torch_compile=false',
  )
  assert words == [
    'torchrun',
    '--nnodes=1',
    '--nproc_per_node=4',
    '--standalone',
    '-m',
    'submission_runner',
    '--workload=fastmri',
    '--framework=pytorch',
    '--submission_path=submissions/nadamw_lawa/submission.py',
    '--tuning_ruleset=external',
    f'--experiment_dir={tmp_path / "runs"}',
    '--experiment_name=nadamw_lawa/study_0',
    words[12],
    '--tuning_search_space=tuning_search_spaces/nadamw_lawa.json',
    '--num_tuning_trials=5',
    '--hparam_start_index=0',
    '--hparam_end_index=1',
    '--data_dir=/data/fastmri',
    '--resume_last_run',
    '--torch_compile=false',
  ]
  assert words[12].startswith('--rng_seed=')


@pytest.mark.parametrize(
  ('workload', 'flags'),
  [
    (
      'imagenet_resnet_gelu',
      [
        '--data_dir=/d/imagenet/pytorch',
        '--imagenet_v2_data_dir=/d/imagenet/pytorch',
      ],
    ),
    (
      'librispeech_deepspeech_tanh',
      [
        '--data_dir=/d/librispeech',
        '--librispeech_tokenizer_vocab_path=/d/librispeech/spm_model.vocab',
      ],
    ),
    ('wmt', ['--data_dir=/d/wmt']),
    ('finewebedu_lm', ['--data_dir=/d/fineweb_edu_10B']),
    ('criteo1tb_test', ['--data_dir=/d/criteo1tb']),
  ],
)
def test_each_workload_gets_the_paths_it_needs(workload, flags):
  assert benchmark.data_flags(workload, '/d') == flags


def test_self_tuning_has_one_trial_and_no_search_space(tmp_path):
  arguments = [
    '--submissions=nadamw_ema',
    '--workloads=ogbg',
    '--tuning_ruleset=self',
  ]
  words = words_of(tmp_path, *arguments)
  assert '--tuning_ruleset=self' in words
  assert not [word for word in words if 'tuning_search' in word]
  assert not [word for word in words if 'hparam' in word]
  _, _, runs = parse(tmp_path, *arguments)
  assert {run.trial for run in runs} == {1}


def test_several_nodes_meet_at_the_first(tmp_path):
  words = words_of(
    tmp_path,
    *LOCAL,
    '--nodes=2',
    '--processes_per_node=4',
    '--executor=print',
    rendezvous=launch_plan.Rendezvous('node1:20123', '4123', is_host=False),
  )
  assert words[:9] == [
    'torchrun',
    '--nnodes=2',
    '--nproc_per_node=4',
    '--rdzv_backend=c10d',
    '--rdzv_endpoint=node1:20123',
    '--rdzv_id=4123',
    '--rdzv_conf=is_host=0',
    '-m',
    'lab.run',
  ]


def test_a_slurm_job_knows_where_its_nodes_meet(tmp_path, monkeypatch):
  pytest.importorskip('submitit')
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


def test_seeds_differ_between_studies_and_workloads_only(tmp_path):
  _, plan, runs = parse(
    tmp_path,
    '--submissions=nadamw,nadamw_ema',
    '--workloads=click_dlrm,stdlib_lm',
    '--trials=2',
  )
  seeds = {run: launch_plan.seed_of(plan, run) for run in runs}
  assert all(0 < seed < 2**31 - 1 for seed in seeds.values())
  assert len(set(seeds.values())) == 3 * 2
  for run, seed in seeds.items():
    other = dataclasses.replace(run, submission='nadamw', trial=1)
    assert seeds[other] == seed
  again = dataclasses.replace(plan, seed=1)
  assert launch_plan.seed_of(again, runs[0]) != seeds[runs[0]]
  # Written down: a study that goes on tomorrow must find the same seeds.
  first = Run('nadamw', 'click_dlrm', study=0, trial=1)
  assert seeds[first] == 1864316039


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


def test_an_evaluation_at_the_end_is_not_the_end(tmp_path):
  plan = plan_of(tmp_path)
  write_end(plan, RUN)
  path = plan.directory(RUN) / 'measurements.csv'
  lines = path.read_text().splitlines()
  path.write_text('\n'.join(lines[:-1]) + '\n')
  assert launch_plan.state_of(plan, RUN) == 'waiting'


def scripted(monkeypatch, text, seen=None):
  """Make every run a line of Python."""

  def command(plan, run, resume=False, rendezvous=None):
    if seen is not None:
      seen.append((run, resume))
    return ['python', '-c', text, str(plan.directory(run))]

  monkeypatch.setattr(launch_plan, 'command', command)


FINISHES = """
import os, sys
folder = sys.argv[1]
os.makedirs(folder)
with open(os.path.join(folder, 'measurements.csv'), 'w') as file:
  file.write('score,total_duration\\n3.5,\\n')
"""


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


def write_rows(path, steps):
  with open(path, 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['score', 'global_step', 'loss'])
    writer.writerows([[10 * step, step, 'a,b'] for step in steps])


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


def test_a_stopped_job_ends_its_processes_and_is_submitted_again(tmp_path):
  submitit = pytest.importorskip('submitit')
  plan, files = plan_of(tmp_path), files_of(tmp_path)
  job = jobs.Job(plan, RUN, files)
  job._process = subprocess.Popen(
    [sys.executable, '-c', 'import time; time.sleep(600)']
  )
  again = job.checkpoint()
  assert job._process.poll() is not None
  assert isinstance(again, submitit.helpers.DelayedSubmission)
  assert (again.function.plan, again.function.run) == (plan, RUN)


def test_print_shows_commands_and_writes_nothing(tmp_path, capsys):
  arguments = [
    '--submissions=nadamw_lawa',
    '--workloads=wmt,imagenet_vit',
    '--executor=print',
    '--gpus_per_node=8',
    f'--experiment_dir={tmp_path / "runs"}',
  ]
  assert launcher.main(arguments) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == f'cd {ROOT}'
  assert len(lines) == 1 + 2 * 3 * 5
  for line in lines[1:]:
    words = shlex.split(line)
    assert words[:3] == ['torchrun', '--nnodes=1', '--nproc_per_node=8']
  assert len(set(lines)) == len(lines)
  assert os.listdir(tmp_path) == []


def test_print_leaves_the_first_nodes_name_to_the_shell(tmp_path, capsys):
  arguments = [*LOCAL, '--executor=print', '--studies=1', '--trials=1']
  arguments += ['--nodes=2', '--processes_per_node=2']
  launcher.main([*arguments, f'--experiment_dir={tmp_path / "runs"}'])
  line = capsys.readouterr().out.splitlines()[1]
  assert ' --rdzv_endpoint="$HEAD_NODE":29500 ' in line
  assert ' --rdzv_id=nadamw_ema-study_0-click_dlrm_pytorch-trial_1 ' in line


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


@pytest.mark.parametrize(
  ('arguments', 'part'),
  [
    (
      ['--submissions=no', '--workloads=wmt'],
      "Invalid submission='no'. Must be",
    ),
    (['--submissions=nadamw', '--workloads=mnits'], "workload='mnits'. Must"),
    (['--submissions=nadamw,nadamw', '--workloads=wmt'], 'is given twice'),
    ([*LOCAL, '--studies=0'], 'invalid positive integer value'),
    ([*LOCAL, '--trials=6'], 'Must be at most 5, the number of points'),
    ([*LOCAL, '--executor=cloud'], "choice: 'cloud'"),
    ([*LOCAL, '--tuning_ruleset=self', '--trials=5'], 'Invalid trials=5.'),
    (
      ['--submissions=nadamw', '--workloads=fastmri', '--gpus_per_node=3'],
      'Invalid batch size 32 of nadamw on fastmri. Must be a multiple of the '
      'number of processes, 3.',
    ),
    ([*LOCAL, '--tuning_search_space=no.json'], 'no.json: No such file'),
    ([*LOCAL, '--nodes=2'], 'Must be 1 with --executor local'),
    (
      [
        '--submissions=nadamw',
        '--workloads=wmt',
        '--executor=slurm',
        '--nodes=2',
        '--gpus_per_node=4',
      ],
      'Invalid nodes=2 for wmt. Must be 1: the benchmark',
    ),
    ([*LOCAL, '--export_dir=/nosuch'], 'No submissions in /nosuch'),
    (['--workloads=wmt'], 'required: --submissions'),
  ],
)
def test_bad_input_ends_in_one_line_before_anything_starts(
  tmp_path, arguments, part
):
  with pytest.raises(InputError) as error:
    launcher.main([*arguments, f'--experiment_dir={tmp_path / "runs"}'])
  assert part in str(error.value)
  assert '\n' not in str(error.value)
  assert os.listdir(tmp_path) == []


def test_another_budget_needs_another_directory(tmp_path):
  _, plan, runs = parse(tmp_path, *LOCAL, '--max_global_steps=7')
  directory = plan.directory(runs[0])
  directory.mkdir(parents=True)
  flags = directory / 'flags_0.json'
  flags.write_text('{"max_global_steps": 7}')
  checks._check_budgets(plan, runs)
  flags.write_text('{"max_global_steps": null}')
  with pytest.raises(InputError, match='Use another --experiment_dir'):
    checks._check_budgets(plan, runs)


def test_missing_data_are_named(tmp_path):
  with pytest.raises(InputError, match=r'no .*librispeech'):
    benchmark.check_data('librispeech_conformer_gelu', str(tmp_path))
  (tmp_path / 'librispeech').mkdir()
  with pytest.raises(InputError, match=r'no .*spm_model\.vocab'):
    benchmark.check_data('librispeech_conformer_gelu', str(tmp_path))


def write_data(root, workload):
  """Make an empty file for each pattern that a workload reads."""
  base = benchmark.BASES[benchmark.BASE_OF[workload]]
  for pattern in base.contents:
    path = root / base.data / pattern.replace('*', 'x')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_imagenet_in_jax_has_other_folders(tmp_path):
  plan = plan_of(tmp_path, *LOCAL)
  run = Run('nadamw_ema_jax', 'imagenet_resnet', study=0, trial=1)
  words = launch_plan.command(plan, run)
  folder = os.path.join(plan.data_dir, 'imagenet', 'jax')
  assert f'--data_dir={folder}' in words
  assert f'--imagenet_v2_data_dir={folder}' in words
  with pytest.raises(InputError, match=r'--imagenet --framework=jax'):
    benchmark.check_data('imagenet_resnet', str(tmp_path), 'jax')


def test_a_folder_is_a_complete_checkpoint_of_jax(tmp_path):
  for step in (5, 10, 15):
    (tmp_path / f'checkpoint_{step}').mkdir()
    (tmp_path / f'checkpoint_{step}' / 'array').touch()
  (tmp_path / 'checkpoint_20.orbax-checkpoint-tmp-1').mkdir()
  assert recovery.complete_steps(tmp_path) == [5, 10, 15]
  recovery.Pruner(tmp_path).prune()
  assert recovery.complete_steps(tmp_path) == [10, 15]


@pytest.mark.parametrize('workload', benchmark.BASES)
def test_each_kind_of_file_that_a_workload_reads_must_exist(workload, tmp_path):
  base = benchmark.BASES[workload]
  assert base.contents
  (tmp_path / base.data).mkdir(parents=True)
  with pytest.raises(InputError, match=f'Missing data of {workload}: no '):
    benchmark.check_data(workload, str(tmp_path))
  write_data(tmp_path, workload)
  benchmark.check_data(workload, str(tmp_path))
  for pattern in base.contents:
    path = tmp_path / base.data / pattern.replace('*', 'x')
    path.unlink()
    with pytest.raises(InputError, match=r'dataset_setup\.py --') as error:
      benchmark.check_data(workload, str(tmp_path))
    assert pattern in str(error.value)
    assert '\n' not in str(error.value)
    path.touch()


def test_packages_of_the_language_model_are_looked_for(monkeypatch):
  missing = {'datasets'}
  monkeypatch.setattr(
    benchmark.importlib.util,
    'find_spec',
    lambda name: None if name in missing else object(),
  )
  benchmark.check_packages('wmt')
  with pytest.raises(InputError, match='Missing package datasets of finewebed'):
    benchmark.check_packages('finewebedu_lm')
  missing.clear()
  benchmark.check_packages('finewebedu_lm')


def test_the_benchmarks_version_is_looked_at(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.delitem(sys.modules, 'algoperf', raising=False)
  monkeypatch.delitem(sys.modules, 'submission_runner', raising=False)
  runner = tmp_path / 'submission_runner.py'
  runner.write_text("flags.DEFINE_string('workload', None, '')\n")
  (tmp_path / 'algoperf').mkdir()
  (tmp_path / 'algoperf' / '__init__.py').write_text('')
  version = '1.0.1.dev3+g58491177c'
  monkeypatch.setattr(
    benchmark.importlib.metadata, 'version', lambda name: version
  )
  assert benchmark.check_installed({'workload'}) is None
  with pytest.raises(InputError, match='has no --rng_seed'):
    benchmark.check_installed({'workload', 'rng_seed'})
  version = '0.7.0'
  warning = benchmark.check_installed({'workload'})
  assert warning.startswith('AlgoPerf 0.7.0 is installed; tested is 1.0, com')


def test_without_the_benchmark_its_workloads_are_refused(monkeypatch):
  monkeypatch.setattr(benchmark.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match='AlgoPerf is not installed'):
    benchmark.check_installed(set())


def test_slurm_is_asked_for_by_name(tmp_path, monkeypatch):
  pytest.importorskip('submitit')
  monkeypatch.setenv('PATH', '')
  _, plan, runs = parse(tmp_path, *LOCAL)
  files = files_of(tmp_path)
  with pytest.raises(InputError, match='no command sbatch'):
    executors.submit(plan, runs, files, 'slurm', {})
  with pytest.raises(InputError, match="Invalid slurm='gpu'"):
    executors.submit(plan, runs, files, 'slurm', {}, ['gpu'])
  assert os.listdir(tmp_path) == []


SBATCH = """#!/bin/sh
cp "$1" "$(dirname "$0")/script"
echo Submitted batch job 51234
"""


def test_a_study_is_one_slurm_array(tmp_path, monkeypatch, capsys):
  pytest.importorskip('submitit')
  commands = tmp_path / 'bin'
  commands.mkdir()
  for name in ('sbatch', 'srun'):
    (commands / name).write_text(SBATCH)
    (commands / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{commands}{os.pathsep}{os.environ["PATH"]}')
  arguments = [*LOCAL, '--executor=slurm', '--studies=2', '--trials=2']
  arguments += ['--nodes=2', '--gpus_per_node=4', '--slurm=partition=gpu']
  launcher.main([*arguments, f'--experiment_dir={tmp_path / "runs"}'])
  script = (commands / 'script').read_text()
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


def test_submitit_runs_a_trial_of_a_local_workload(tmp_path):
  pytest.importorskip('submitit')
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
