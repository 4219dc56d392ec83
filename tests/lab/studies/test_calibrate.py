"""The arithmetic of the 75 % rule, on typed-out values."""

import json
import math

import pytest

from lab.core.errors import InputError
from lab.studies import calibrate
from lab.studies.parts import execution, training
from lab.workloads import click_dlrm, targets


def test_best_ignores_values_that_are_not_finite():
  curve = [[1, 0, math.nan], [2, 0, 0.3], [4, 0, 0.7], [5, 0, math.inf]]
  assert calibrate.best_of(curve, higher_is_better=True) == (4, 0.7)
  assert calibrate.best_of(curve, higher_is_better=False) == (2, 0.3)
  assert calibrate.best_of([[1, 0, math.nan]], True) == (None, None)
  assert calibrate.best_of([], True) == (None, None)


def test_target_is_the_median_over_seeds():
  assert calibrate.median_target([0.3, 0.1, 0.5, 0.2, 0.4]) == 0.3
  for values in ([0.3, None, 0.2], []):
    with pytest.raises(InputError, match='Every seed must have one'):
      calibrate.median_target(values)


def test_a_run_evaluates_both_splits_in_its_second_half(shrink, tmp_path):
  shrink(click_dlrm.Workload, steps=16, eval_every_steps=2)
  found = calibrate.training(
    'click_dlrm', {'learning_rate': 0.01}, seed=3
  ).execute(str(tmp_path))
  assert found['budget_steps'] == 12
  for key in ('curves', 'test_curves'):
    assert [step for step, *_ in found[key]['raw']] == [6, 8, 10, 12]
  assert found['curves']['raw'][0][2] != found['test_curves']['raw'][0][2]
  row = calibrate.row_of(found)
  best = min(value for *_, value in found['curves']['raw'])
  assert (row['seed'], row['validation']) == (3, best)


def test_calibration_writes_targets_from_the_tuned_point(tmp_path, monkeypatch):
  def run_all(trainings, directory, jobs):
    return [
      {
        'seed': run.seed,
        'higher_is_better': False,
        'curves': {
          'raw': [[9, 1.5, 0.5 + 0.01 * run.seed + run.point['learning_rate']]]
        },
        'test_curves': {'raw': [[9, 1.5, 0.6 - 0.01 * run.seed]]},
      }
      for run in trainings
    ]

  monkeypatch.setattr(execution, 'run_all', run_all)
  monkeypatch.setattr(targets, 'path', lambda name: tmp_path / f'{name}.json')
  monkeypatch.setattr(training, 'ROOT', tmp_path)
  path = training.tuned_path('click_dlrm')
  with pytest.raises(InputError, match=r'is missing. Call .*tune .*--promote'):
    calibrate.calibrate('click_dlrm', 'runs', 1)
  path.parent.mkdir(parents=True)
  point = {'learning_rate': 0.25, 'beta2': 0.75}
  path.write_text(json.dumps([point]))
  record = calibrate.calibrate('click_dlrm', 'runs', 1)
  assert record['validation_target'] == pytest.approx(0.77)
  assert record['test_target'] == pytest.approx(0.58)
  assert record['point'] == point
  assert [run['seed'] for run in record['seeds']] == [0, 1, 2, 3, 4]
  assert json.loads((tmp_path / 'click_dlrm.json').read_text()) == record


def test_an_unknown_workload_lists_those_that_exist():
  with pytest.raises(InputError, match=r"workloads='x'.*click_dlrm, denoise"):
    calibrate.main(['--workloads=x'])
  with pytest.raises(InputError, match='required: --workloads'):
    calibrate.main([])
