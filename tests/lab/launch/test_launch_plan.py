"""Commands, seeds and hours of the runs of a plan."""

import dataclasses
import json
import os
import pathlib
import re
import shlex

import pytest
from launch_runs import LOCAL, ROOT, parse, plan_of, words_of

from lab.core.errors import InputError
from lab.launch import (
  benchmark,
  checks,
  launch_plan,
  launcher,
)
from lab.launch.launch_plan import Run


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


def test_the_docs_say_how_many_hours_a_study_is_billed(tmp_path):
  page = pathlib.Path('docs/submit.md').read_text(encoding='utf-8')
  for ruleset in ('external', 'self'):
    _, plan, runs = parse(
      tmp_path,
      '--submissions=nadamw',
      '--workloads=all',
      f'--tuning_ruleset={ruleset}',
    )
    assert f'up to {launcher.hours_of(plan, runs):,.0f} hours' in page


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


def test_values_beside_flags_are_no_flags(tmp_path):
  words = words_of(
    tmp_path, '--submissions=nadamw', '--workloads=ogbg',
    '--', '--torch_compile', 'false', '-v=1', '--offset', '-3',
  )  # fmt: skip
  names = launch_plan.flag_names(words)
  assert {'workload', 'rng_seed', 'torch_compile', 'v', 'offset'} <= names
  assert all(name.isidentifier() for name in names)
  assert 'false' not in names


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
    (
      ['--submissions=nadamw_jax', '--workloads=click_dlrm'],
      'click_dlrm for nadamw_jax. Must be among glyph_resnet, stdlib_lm',
    ),
    ([*LOCAL, '--slurm', 'a=b'], "slurm='a=b'. It has no effect with --exec"),
    ([*LOCAL, '--timeout_min=3'], 'timeout_min=3. It has no effect with --ex'),
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


def test_ranges_are_for_local_workloads(tmp_path, capsys):
  space = tmp_path / 'ranges.json'
  range_ = {'min': 1e-4, 'max': 1e-2, 'scaling': 'log'}
  space.write_text(json.dumps({'learning_rate': range_}))
  words = [
    '--submissions=nadamw',
    '--executor=print',
    f'--tuning_search_space={space}',
    f'--experiment_dir={tmp_path / "runs"}',
    '--workloads',
  ]
  with pytest.raises(
    InputError, match=r'ranges\.json\. Must be a list of point'
  ):
    launcher.main([*words, 'click_dlrm,wmt'])
  assert launcher.main([*words, 'click_dlrm']) == 0
  assert capsys.readouterr().out.count('--hparam_start_index') == 15


def test_the_experiment_directory_has_a_name(tmp_path, monkeypatch):
  with pytest.raises(InputError, match=r'Invalid experiment_dir=/\. Must have'):
    launcher.main([*LOCAL, '--status', '--experiment_dir=/'])
  (tmp_path / 'inside').mkdir()
  monkeypatch.chdir(tmp_path / 'inside')
  _, plan, _ = launcher.parse([*LOCAL, '--experiment_dir=..'])
  assert plan.experiment_dir == tmp_path


def test_another_budget_needs_another_directory(tmp_path):
  _, plan, runs = parse(tmp_path, *LOCAL, '--max_global_steps=7')
  directory = plan.directory(runs[0])
  directory.mkdir(parents=True)
  flags = directory / 'flags_0.json'
  flags.write_text('{"max_global_steps": 7}')
  checks.check_recorded(plan, runs)
  flags.write_text('{"max_global_steps": null}')
  with pytest.raises(InputError, match='Use another --experiment_dir'):
    checks.check_recorded(plan, runs)


@pytest.mark.parametrize('status', [False, True])
@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (['--rng_seed=7'], r'was run with rng_seed=\d+, not'),
    (['--tuning_ruleset=self'], 'tuning_ruleset=external, not self'),
    (['--tuning_search_space=other.json'], r'learning_rate=0\.0\d+, not 0.5'),
  ],
)
def test_another_seed_or_point_needs_another_directory(
  tmp_path, changes, message, status, capsys
):
  directory = f'--experiment_dir={tmp_path / "runs"}'
  space = ROOT / 'tuning_search_spaces' / 'nadamw_ema.json'
  points = json.loads(space.read_text())
  other = tmp_path / 'other.json'
  other.write_text(json.dumps([{**points[0], 'learning_rate': 0.5}] * 5))
  one = [*LOCAL, '--studies=1', directory, '--processes_per_node=0']
  _, plan, runs = launcher.parse([*one, '--trials=1'])
  trial = plan.directory(runs[0])
  trial.mkdir(parents=True)
  record = {
    'max_global_steps': None,
    'tuning_ruleset': 'external',
    'rng_seed': launch_plan.seed_of(plan, runs[0]),
  }
  (trial / 'flags_0.json').write_text(json.dumps(record))
  (trial / 'hparams.json').write_text(json.dumps(points[0]))
  checks.check_recorded(plan, runs)
  changes = [c.replace('other.json', str(other)) for c in changes]
  if 'self' not in changes[0]:
    changes.append('--trials=1')
  if status:
    assert launcher.main([*one, *changes, '--status']) == 0
    assert re.search(message, capsys.readouterr().err)
    return
  with pytest.raises(InputError, match=message):
    launcher.main([*one, *changes])


def test_imagenet_in_jax_has_other_folders(tmp_path):
  plan = plan_of(tmp_path, *LOCAL)
  run = Run('nadamw_ema_jax', 'imagenet_resnet', study=0, trial=1)
  words = launch_plan.command(plan, run)
  folder = os.path.join(plan.data_dir, 'imagenet', 'jax')
  assert f'--data_dir={folder}' in words
  assert f'--imagenet_v2_data_dir={folder}' in words
  with pytest.raises(InputError, match=r'--imagenet --framework=jax'):
    benchmark.check_data('imagenet_resnet', str(tmp_path), 'jax')
