"""Reading folders of logs: layouts, and files that are not whole."""

import math
import os
import pathlib
import tempfile

import log_folders
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.report import log_files, targets

GOALS = targets.of_version('1.0').goals | {
  'glyph_resnet': targets.Goal(metric='accuracy', target=0.9)
}
ROWS = [(10, 1.0, 0.5), (20, 2.0, 0.4), (30, 3.0, 0.3)]


def _read(*folders):
  reader = log_files.Reader(GOALS)
  return reader.read(list(folders)), reader.problems


def _one(tmp_path):
  (trial,), problems = _read(tmp_path)
  return trial, problems


def test_reads_submissions_studies_trials_and_frameworks(tmp_path):
  for submission, framework in (('a', 'jax'), ('b_jax', 'pytorch')):
    for study in (0, 1):
      for trial in (1, 2, 10):
        log_folders.write_trial(
          tmp_path,
          submission,
          'criteo1tb',
          ROWS,
          study=study,
          trial=trial,
          framework=framework,
        )
  trials, problems = _read(tmp_path)
  assert problems == []
  assert [(t.submission, t.study, t.trial, t.framework) for t in trials] == [
    (submission, f'study_{study}', trial, framework)
    for submission, framework in (('a', 'jax'), ('b_jax', 'pytorch'))
    for study in (0, 1)
    for trial in (1, 2, 10)
  ]
  first = trials[0].evaluations[0]
  assert (first.step, first.seconds, first.value) == (10, 1.0, 0.5)
  # Written as a fourth of the billed time.
  assert trials[0].evaluation_share == 0.2


def test_folder_may_be_one_submission_or_have_no_studies(tmp_path):
  log_folders.write_trial(tmp_path / 'logs', 'mine', 'criteo1tb', ROWS)
  ((trial,), _) = _read(tmp_path / 'logs' / 'mine')
  assert (trial.submission, trial.study) == ('mine', 'study_0')
  ((trial,), _) = _read(tmp_path / 'logs' / 'mine' / 'study_0')
  assert trial.workload == 'criteo1tb'
  bare = tmp_path / 'bare' / 'named' / 'glyph_resnet_pytorch' / 'trial_1'
  bare.mkdir(parents=True)
  (bare / 'eval_measurements.csv').write_text(
    'global_step,accumulated_submission_time,validation/accuracy\n5,2.5,0.9\n'
  )
  ((trial,), problems) = _read(tmp_path / 'bare')
  assert problems == []
  assert (trial.submission, trial.study) == ('named', 'study_0')
  assert trial.evaluations[0].seconds == 2.5


def test_names_that_are_no_utf_8_are_readable_and_stay_different(tmp_path):
  for end in (b'\xff', b'\xfe'):
    name = os.fsdecode(b'a' + end)
    log_folders.write_trial(tmp_path, name, 'criteo1tb', ROWS)
  trials, problems = _read(tmp_path)
  assert [trial.submission for trial in trials] == [r'a\xfe', r'a\xff']
  assert problems == []


def test_links_are_followed_once(tmp_path):
  log_folders.write_trial(tmp_path / 'kept', 'a', 'criteo1tb', ROWS)
  logs = tmp_path / 'logs'
  logs.mkdir()
  (logs / 'a').symlink_to(tmp_path / 'kept' / 'a')
  (logs / 'again').symlink_to(logs)
  trials, problems = _read(logs)
  assert [t.submission for t in trials] == ['a']
  assert problems == []


def test_a_trial_below_two_folders_is_read_once(tmp_path):
  for name in ('a', 'b'):
    log_folders.write_trial(tmp_path, name, 'criteo1tb', ROWS)
  trials, problems = _read(tmp_path, tmp_path, tmp_path / 'b')
  assert [t.submission for t in trials] == ['a', 'b']
  assert problems == []


def test_study_may_carry_the_runners_timestamp(tmp_path):
  log_folders.write_trial(tmp_path, 'a', 'criteo1tb', ROWS)
  study = tmp_path / 'a' / 'study_0'
  name = 'study_0-2026-01-02-03-04-05'
  study.rename(study.with_name(name))
  for folder in (tmp_path, tmp_path / 'a'):
    ((trial,), problems) = _read(folder)
    assert (trial.submission, trial.study) == ('a', name)
    assert problems == []


def test_workload_without_trials_is_listed(tmp_path):
  log_folders.write_trial(tmp_path, 'a_jax', 'criteo1tb', ROWS)
  empty = tmp_path / 'a_jax' / 'study_0' / 'wmt_jax'
  empty.mkdir()
  trials, problems = _read(tmp_path)
  assert len(trials) == 1
  assert problems == [f'{empty}: no trials.']


def test_trials_of_a_study_with_the_same_fault_are_one_line(tmp_path):
  for study in (0, 1):
    for trial in (1, 2, 10):
      path = log_folders.write_trial(
        tmp_path, 'a', 'criteo1tb', ROWS, study=study, trial=trial
      )
      if trial > 1:
        path.unlink()
  trials, problems = _read(tmp_path)
  assert len(trials) == 2
  assert problems == [
    f'a/study_{study}/criteo1tb_pytorch/trial_2, 10: no measurements '
    '(eval_measurements.csv missing).'
    for study in (0, 1)
  ]


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
  path = log_folders.write_trial(tmp_path, 'a', 'criteo1tb', ROWS)
  path.write_text('\ufeffglobal_step,score,validation/loss\n10,1.0,0.5\n')
  trial, problems = _one(tmp_path)
  assert (trial.evaluations[0].step, problems) == (10, [])


@pytest.mark.parametrize(
  'row', ['-1,1,0.5', '1,-1,0.5', '1,inf,0.5', 'nan,1,0']
)
def test_rows_without_a_possible_step_and_time_are_left_out(tmp_path, row):
  path = log_folders.write_trial(tmp_path, 'a', 'criteo1tb', ROWS)
  path.write_text(f'global_step,score,validation/loss\n{row}\n10,0,0.5\n')
  trial, (problem,) = _one(tmp_path)
  assert [e.step for e in trial.evaluations] == [10]
  assert '1 of 2 rows cut or without step and time' in problem


def test_cut_line_is_left_out(tmp_path):
  path = log_folders.write_trial(tmp_path, 'a', 'criteo1tb', ROWS)
  path.write_text(path.read_text()[:-9])
  trial, (problem,) = _one(tmp_path)
  assert [e.step for e in trial.evaluations] == [10, 20]
  assert problem == (
    'a/study_0/criteo1tb_pytorch/trial_1: 1 of 3 rows cut or without step and '
    'time, left out.'
  )


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_file_cut_anywhere_gives_the_rows_before_the_cut(data):
  columns = ['global_step', 'score', 'validation/loss', 'x']
  columns = data.draw(st.permutations(columns))
  # Values of which every cut is another number.
  lines = [
    {'global_step': 111 * i, 'score': 222.25 * i, 'validation/loss': 0.1234 * i}
    for i in (1, 2, 3)
  ]
  text = '\n'.join(
    [','.join(columns)]
    + [','.join(str(line.get(c, 77)) for c in columns) for line in lines]
    + ['']
  )
  cut = data.draw(st.integers(0, len(text)))
  with tempfile.TemporaryDirectory() as folder:
    path = log_folders.write_trial(folder, 'a', 'criteo1tb', ROWS)
    path.write_text(text)
    (whole,), problems = _read(pathlib.Path(folder))
    assert problems == []
    path.write_text(text[:cut])
    trials, problems = _read(pathlib.Path(folder))
  evaluations = trials[0].evaluations if trials else ()
  assert evaluations == whole.evaluations[: len(evaluations)]
  # Nothing is lost but the line that was cut, and a cut is said.
  assert len(evaluations) >= text[:cut].count('\n') - 1
  assert problems or len(evaluations) == text[:cut].rstrip('\n').count('\n')


def test_cut_number_at_the_end_of_the_file_is_left_out(tmp_path):
  path = log_folders.write_trial(tmp_path, 'a', 'criteo1tb', ROWS)
  # The metric comes last, so that a cut value is a wrong value.
  path.write_text('global_step,score,validation/loss\n10,1.0,0.5\n20,2.0,0.12')
  trial, problems = _one(tmp_path)
  assert [e.step for e in trial.evaluations] == [10]
  assert len(problems) == 1
  path.write_text('global_step,validation/loss,score,x\n10,0.5,1.0,7')
  trial, problems = _one(tmp_path)
  assert len(trial.evaluations) == 1
  assert problems == []


def test_rows_without_the_metric_are_kept_and_listed(tmp_path):
  rows = [(10, 1.0, None), (20, 2.0, 'nan'), (30, 3.0, 'oops'), (40, 4.0, 0.1)]
  log_folders.write_trial(tmp_path, 'a', 'criteo1tb', rows)
  trial, (problem,) = _one(tmp_path)
  assert sum(math.isnan(e.value) for e in trial.evaluations) == 3
  assert 'validation/loss is missing or NaN in 3 of 4 rows' in problem


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    ('', 'no measurements (eval_measurements.csv is empty)'),
    ('global_step,score,validation/loss\n', 'csv has no rows'),
    ('global_step,score\n1,2\n', 'no column validation/loss'),
    ('validation/loss\n1\n', 'global_step, score or accumulated_submission_'),
    ('global_step,score,validation/loss\nx,1,1\n', '1 of 1 rows cut'),
    ('\x00\x00\x00', 'no measurements'),
    ('\ufffd\x01garbage\n', 'no column global_step'),
  ],
)
def test_file_without_measurements_is_listed_and_the_rest_read(
  tmp_path, text, reason
):
  path = log_folders.write_trial(tmp_path, 'a', 'criteo1tb', ROWS)
  path.write_text(text)
  log_folders.write_trial(tmp_path, 'b', 'criteo1tb', ROWS)
  trials, problems = _read(tmp_path)
  assert [t.submission for t in trials] == ['b']
  assert len(problems) == 1
  assert reason in problems[0]


def test_missing_file_bytes_and_odd_json(tmp_path):
  path = log_folders.write_trial(tmp_path, 'a', 'criteo1tb', ROWS)
  path.unlink()
  path = log_folders.write_trial(
    tmp_path, 'b', 'criteo1tb', ROWS, extra={'hparams.json': [1]}
  )
  path.write_bytes(path.read_bytes() + b'\xff\xfe\x00,1\n')
  trials, problems = _read(tmp_path)
  assert [len(t.evaluations) for t in trials] == [3]
  assert [p.split(': ')[1] for p in problems] == [
    'no measurements (eval_measurements.csv missing).',
    '1 of 4 rows cut or without step and time, left out.',
    'hparams.json is not a JSON object, ignored.',
  ]


def test_self_tuning_runs_have_null_hyperparameters(tmp_path):
  log_folders.write_trial(
    tmp_path, 'a', 'criteo1tb', ROWS, extra={'hparams.json': None}
  )
  trial, problems = _one(tmp_path)
  assert (trial.hyperparameters, problems) == ({}, [])


def test_unknown_workload_is_listed_once(tmp_path):
  for study in (0, 1):
    log_folders.write_trial(tmp_path, 'a', 'chess', ROWS, study=study)
  trials, problems = _read(tmp_path)
  assert trials == []
  assert problems == [
    'chess: unknown workload, left out. Give its target by --targets.'
  ]


def test_second_submission_of_a_name_is_left_out(tmp_path):
  for folder in ('one', 'two'):
    for study in (0, 1):
      log_folders.write_trial(
        tmp_path / folder, 'a', 'criteo1tb', ROWS, study=study
      )
  trials, problems = _read(tmp_path / 'one', tmp_path / 'two')
  assert len(trials) == 2
  assert len(problems) == 1
  assert 'a submission of this name is read from' in problems[0]


def test_submission_in_both_frameworks_becomes_two(tmp_path):
  for framework in ('jax', 'pytorch'):
    log_folders.write_trial(
      tmp_path, 'a', 'criteo1tb', ROWS, framework=framework
    )
  log_folders.write_trial(tmp_path, 'b', 'criteo1tb', ROWS)
  trials, _ = _read(tmp_path)
  names = {t.submission for t in trials}
  assert names == {'a [jax]', 'a [pytorch]', 'b'}


def test_devices_and_averaging_come_from_the_runners_files(tmp_path):
  sections = [
    {'section': 'Update parameters', 'total_seconds': 90.0},
    {'section': 'Averaging', 'total_seconds': 4.0},
    {'section': 'Prepare for eval', 'total_seconds': 10.0},
    {'section': 'Swap', 'total_seconds': 1.0},
    {'section': 'Evaluation', 'total_seconds': 50.0},
  ]
  log_folders.write_trial(
    tmp_path,
    'a',
    'criteo1tb',
    ROWS,
    extra={
      'meta_data_0.json': {'gpu_count': 8},
      'profile.json': {'sections': sections},
    },
  )
  trial, _ = _one(tmp_path)
  assert trial.gpus == 8
  assert trial.averaging_share == 0.05


def test_calls_of_the_lawa_queue_submission_become_steps(tmp_path):
  # ogbg under 0.5: an evaluation each 240 s, 18,477 s for 80,000 steps, so that
  # a quarter of a period is ceil(259.8) steps.
  goals = targets.of_version('0.5').goals
  log_folders.write_trial(
    tmp_path,
    'lawa_queue',
    'ogbg',
    [(3, 250.0, 0.1)],
    metric='mean_average_precision',
    hyperparameters={'lawa_inner_steps_frac': 0.25},
  )
  reader = log_files.Reader(goals)
  (trial,) = reader.read([tmp_path])
  assert trial.evaluations[0].step == 3 * 260
  assert trial.steps_per_call == 260
