"""The local runner: order of calls, clock, budget, logs."""

import csv
import dataclasses
import json
import logging as std_logging
import os

import fakes
import pytest
import torch
from absl import flags

from lab.core import checkpoint_files
from lab.run import checkpoints
from lab.run.distributed import Context
from lab.run.settings import Settings
from weightavg import spec

EVAL_COLUMNS = [
  'accumulated_eval_time',
  'accumulated_logging_time',
  'accumulated_submission_time',
  'global_step',
  'preemption_count',
  'score',
  'test/loss',
  'test/num_examples',
  'total_duration',
  'train/loss',
  'validation/loss',
  'validation/num_examples',
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / 'space.json').write_text(json.dumps(fakes.POINTS))
  return tmp_path


def rows(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def steps_of_evaluations(state):
  return [step for step, _ in state.eval_results]


def final(folder, name='x', trial=1):
  directory = folder / 'runs' / name / 'fake_pytorch' / f'trial_{trial}'
  return torch.load(checkpoint_files.latest(str(directory)), weights_only=True)


def assert_same_weights(a, b):
  assert a['model_params'].keys() == b['model_params'].keys()
  for key, value in a['model_params'].items():
    assert torch.equal(value, b['model_params'][key]), key


def test_log_layout_and_columns_are_the_benchmarks(folder, monkeypatch):
  fakes.register(monkeypatch)
  fakes.run(folder, num_tuning_trials=2)
  root = folder / 'runs' / 'x' / 'fake_pytorch'
  assert sorted(os.listdir(root)) == ['trial_1', 'trial_2']
  for number, point in enumerate(fakes.POINTS, 1):
    trial = root / f'trial_{number}'
    hidden = sorted(name for name in os.listdir(trial) if name[0] == '.')
    assert hidden == sorted(f'.checkpoint_{n}.sha256' for n in (5, 10, 15, 20))
    assert sorted({*os.listdir(trial)} - {*hidden}) == [
      'checkpoint_10',
      'checkpoint_15',
      'checkpoint_20',
      'checkpoint_5',
      'eval_measurements.csv',
      'flags_0.json',
      'hparams.json',
      'measurements.csv',
      'meta_data_0.json',
      'profile.json',
    ]
    assert json.loads((trial / 'hparams.json').read_text()) == point
    evals = rows(trial / 'eval_measurements.csv')
    assert list(evals[0]) == EVAL_COLUMNS
    assert [row['global_step'] for row in evals] == ['5', '10', '15', '20']
    everything = rows(trial / 'measurements.csv')
    assert sorted(everything[0]) == sorted([*EVAL_COLUMNS, 'loss'])
    # The submission logs every third step, the runner evaluations and score.
    assert [row['global_step'] for row in everything] == (
      ['0', '3', '5', '6', '9', '10', '12', '15', '15', '18', '20', '20']
    )
    assert everything[-1]['score'] == evals[-1]['score']
    meta = json.loads((trial / 'meta_data_0.json').read_text())
    assert meta['rng_seed'] == 0
    assert meta['workload.step_hint'] == 20


def test_calls_come_in_the_benchmarks_order(folder, monkeypatch):
  calls = []
  fakes.register(monkeypatch, on=lambda self, m, s: calls.append((m, s)))
  fakes.run(folder, max_global_steps=3, eval_every_steps=2)
  assert calls == [
    ('update', 0),
    ('update', 1),
    ('prepare', 2),
    ('evaluate', 2),
    ('update', 2),
    ('prepare', 3),
    ('evaluate', 3),
  ]


class HandClock(Context):
  """A clock that moves only when it is told to."""

  now = 0.0

  def clock(self):
    return HandClock.now


def test_only_the_submission_is_billed(folder, monkeypatch):
  durations = {'update': 1.0, 'prepare': 10.0, 'evaluate': 100.0}

  def on(self, moment, step):
    HandClock.now += durations[moment]

  def slow_save(*args, **kwargs):
    HandClock.now += 1000.0

  monkeypatch.setattr(HandClock, 'now', 0.0)
  monkeypatch.setattr(checkpoints, 'save', slow_save)
  fakes.register(monkeypatch, on=on, max_allowed_runtime_sec=10**6)
  state = fakes.run(folder, HandClock())
  assert state.train_state['accumulated_submission_time'] == 20 * 1 + 4 * 10
  assert state.train_state['accumulated_eval_time'] == 4 * 100
  assert state.train_state['accumulated_logging_time'] == 4 * 1000
  assert [m['score'] for _, m in state.eval_results] == [15, 30, 45, 60]
  assert state.eval_results[-1][1]['total_duration'] == 60 + 400 + 3000


@pytest.mark.parametrize(
  ('changes', 'limit', 'last_step'),
  [
    ({}, 14, 10),
    ({'tuning_ruleset': 'self', 'tuning_search_space': None}, 14, 15),
    ({'run_to_budget': True}, 14, 20),
  ],
)
def test_time_limit_ends_a_run_without_an_evaluation(
  folder, monkeypatch, changes, limit, last_step
):
  def on(self, moment, step):
    HandClock.now += 2.0 if moment == 'update' else 0.0

  monkeypatch.setattr(HandClock, 'now', 0.0)
  fakes.register(monkeypatch, on=on, max_allowed_runtime_sec=limit)
  state = fakes.run(folder, HandClock(), max_global_steps=20, **changes)
  assert state.global_step == last_step
  if last_step < 20:
    assert steps_of_evaluations(state) == list(range(5, last_step, 5))


@pytest.mark.parametrize(
  ('changes', 'evaluations'),
  [
    ({}, [5, 10, 15, 20]),
    ({'max_global_steps': 12}, [5, 10, 12]),
    ({'eval_every_steps': 8}, [8, 16, 20]),
    ({'eval_every_steps': 100}, [20]),
    ({'skip_evals': True}, []),
  ],
)
def test_budget_and_cadence(folder, monkeypatch, changes, evaluations):
  fakes.register(monkeypatch)
  state = fakes.run(folder, **changes)
  assert state.global_step == changes.get('max_global_steps', 20)
  assert steps_of_evaluations(state) == evaluations


def test_without_steps_between_evaluations_the_seconds_decide(
  folder, monkeypatch
):
  def on(self, moment, step):
    HandClock.now += 1.0 if moment == 'update' else 0.0

  # The first evaluation is due at once: none has ever been made.
  monkeypatch.setattr(HandClock, 'now', 100.0)
  fakes.register(
    monkeypatch, on=on, eval_every_steps=None, eval_period_time_sec=8
  )
  state = fakes.run(folder, HandClock())
  assert steps_of_evaluations(state) == [1, 9, 17, 20]


@pytest.mark.parametrize('run_to_budget', [False, True])
def test_reached_targets_end_a_run_unless_it_goes_to_the_budget(
  folder, monkeypatch, run_to_budget
):
  fakes.register(
    monkeypatch, validation_target_value=1e9, test_target_value=1e9
  )
  state = fakes.run(folder, run_to_budget=run_to_budget)
  assert state.global_step == (20 if run_to_budget else 5)
  assert state.goals_reached


def test_one_target_alone_does_not_end_a_run(folder, monkeypatch):
  fakes.register(monkeypatch, validation_target_value=1e9)
  state = fakes.run(folder)
  assert state.global_step == 20
  assert state.train_state['validation_goal_reached']
  assert not state.train_state['test_goal_reached']


@pytest.mark.parametrize('last', [7, 5])
def test_a_submission_may_end_its_run(folder, monkeypatch, last):
  def on(self, moment, step):
    if (moment, step) == ('update', last):
      raise spec.TrainingCompleteError

  fakes.register(monkeypatch, on=on)
  state = fakes.run(folder)
  assert state.global_step == last + 1
  assert steps_of_evaluations(state) == [5, last + 1]
  if last == 5:
    # Two evaluations with no step in between see the same weights.
    first, second = (m['validation/loss'] for _, m in state.eval_results)
    assert first == second


def test_the_flags_are_the_settings():
  for field in dataclasses.fields(Settings):
    flag = flags.FLAGS[field.name]
    if field.default is not dataclasses.MISSING:
      assert flag.default == field.default, field.name
    assert flag.help
  assert 'click_dlrm' in flags.FLAGS['workload'].help


def test_the_same_seed_repeats_a_run_and_another_does_not(folder, monkeypatch):
  fakes.register(monkeypatch)
  for name, seed in (('a', 0), ('b', 0), ('c', 1)):
    # What other code drew before must not matter.
    torch.rand(ord(name) % 10)
    fakes.run(folder, experiment_name=name, rng_seed=seed)
  assert_same_weights(final(folder, 'a'), final(folder, 'b'))
  different = final(folder, 'c')['model_params']['head.weight']
  assert not torch.equal(
    final(folder, 'a')['model_params']['head.weight'], different
  )


def test_evaluations_do_not_change_training(folder, monkeypatch):
  fakes.register(monkeypatch)
  fakes.run(folder, experiment_name='often', eval_every_steps=1)
  fakes.run(folder, experiment_name='once', eval_every_steps=20)
  often, once = final(folder, 'often'), final(folder, 'once')
  assert_same_weights(often, once)
  for a, b in zip(
    often['optimizer_state']['average']['raw'],
    once['optimizer_state']['average']['raw'],
    strict=True,
  ):
    assert torch.equal(a, b)


def test_checkpoints_hold_the_weights_that_were_evaluated(folder, monkeypatch):
  fakes.register(monkeypatch)
  fakes.run(folder)
  checkpoint = final(folder)
  average = checkpoint['optimizer_state']['average']['average']
  assert torch.equal(checkpoint['model_params']['hidden.weight'], average[0])
  assert set(checkpoint) == set(checkpoints.KEYS)


def test_only_the_latest_checkpoint_is_kept_if_asked(folder, monkeypatch):
  fakes.register(monkeypatch)
  fakes.run(folder, save_intermediate_checkpoints=False)
  trial = folder / 'runs/x/fake_pytorch/trial_1'
  assert checkpoint_files.steps(str(trial)) == [20]
  fakes.run(folder, experiment_name='none', save_checkpoints=False)
  trial = folder / 'runs/none/fake_pytorch/trial_1'
  assert checkpoint_files.steps(str(trial)) == []


def test_a_missing_prepare_for_eval_is_warned_of_once(
  folder, monkeypatch, caplog
):
  fakes.register(monkeypatch)
  text = fakes.SUBMISSION.replace('def prepare_for_eval', 'def forgotten')
  path = fakes.write_submission(folder, text)
  with caplog.at_level(std_logging.WARNING, 'absl'):
    state = fakes.run(folder, submission_path=path)
  assert state.global_step == 20
  warnings = [r for r in caplog.records if 'prepare_for_eval' in r.message]
  assert len(warnings) == 1


def test_a_state_without_state_dict_is_left_out_with_a_warning(
  folder, monkeypatch, caplog
):
  fakes.register(monkeypatch)
  text = fakes.SUBMISSION.replace(
    "    'optimizer': t", "    'x': 1, 'optimizer': t"
  )
  path = fakes.write_submission(folder, text)
  with caplog.at_level(std_logging.WARNING, 'absl'):
    fakes.run(folder, submission_path=path)
  assert 'x' not in final(folder)['optimizer_state']
  assert any("'x'" in r.message for r in caplog.records)


def test_hyperparameter_slices_run_only_their_trials(folder, monkeypatch):
  fakes.register(monkeypatch)
  fakes.run(
    folder, num_tuning_trials=2, hparam_start_index=1, hparam_end_index=2
  )
  assert os.listdir(folder / 'runs/x/fake_pytorch') == ['trial_2']


def test_overwrite_replaces_an_experiment(folder, monkeypatch):
  fakes.register(monkeypatch)
  fakes.run(folder)
  old = folder / 'runs/x/fake_pytorch/trial_1/old'
  old.write_text('')
  other = folder / 'runs/x/other_pytorch/trial_1/kept'
  other.parent.mkdir(parents=True)
  other.write_text('')
  fakes.run(folder, overwrite=True)
  assert not old.exists()
  assert other.exists()


def test_a_timestamp_makes_names_unique(folder, monkeypatch):
  fakes.register(monkeypatch)
  fakes.run(folder, append_timestamp=True, max_global_steps=1)
  (name,) = os.listdir(folder / 'runs')
  assert name.startswith('x-2')
