"""The arithmetic of tuning and of the 75 % rule, on typed-out values."""

import json
import math

import pytest

from lab.core.errors import InputError
from lab.studies import calibrate
from lab.studies.parts import execution, study
from lab.workloads import WORKLOADS, build_workload, click_dlrm, targets


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


class Curve:
  """Metric as a function of the rate's doublings above 0.01."""

  def __init__(self, values):
    self.values = values
    self.calls = []

  def __call__(self, rates):
    doublings = [round(math.log2(rate / 0.01)) for rate in rates]
    self.calls.append(doublings)
    return [self.values.get(d) for d in doublings]


def values(rows):
  return [row['validation'] for row in rows]


def test_tuning_takes_the_best_of_five_rates():
  curve = Curve({-2: 5.0, -1: 4.0, 0: 3.5, 1: 3.0, 2: 3.2})
  rate, rows = calibrate.tune_rate(0.01, curve, higher_is_better=False)
  assert rate == 0.02
  assert curve.calls == [[-2, -1, 0, 1, 2]]
  assert values(rows) == [5.0, 4.0, 3.5, 3.0, 3.2]
  rates = [0.0025, 0.005, 0.01, 0.02, 0.04]
  assert [row['learning_rate'] for row in rows] == rates


def test_tuning_goes_on_while_the_best_rate_is_at_the_edge():
  up = Curve({-2: 1, -1: 2, 0: 3, 1: 4, 2: 5, 3: 6, 4: 5.5})
  rate, rows = calibrate.tune_rate(0.01, up, higher_is_better=True)
  assert rate == 0.08
  assert up.calls == [[-2, -1, 0, 1, 2], [3], [4]]
  assert values(rows) == [1, 2, 3, 4, 5, 6, 5.5]
  down = Curve({-3: 2.0, -2: 1.0, -1: 3.0})
  rate, _ = calibrate.tune_rate(0.01, down, higher_is_better=False)
  assert rate == 0.0025
  assert down.calls == [[-2, -1, 0, 1, 2], [-3]]


def test_tuning_stops_at_its_widest_and_refuses_a_grid_that_diverges():
  endless = Curve({d: d for d in range(-9, 9)})
  rate, _ = calibrate.tune_rate(0.01, endless, higher_is_better=True)
  assert rate == 0.64
  with pytest.raises(InputError, match='finite'):
    calibrate.tune_rate(0.01, Curve({}), higher_is_better=True)


def test_every_workload_starts_from_a_published_point():
  points = json.loads(
    (study.ROOT / 'tuning_search_spaces/nadamw.json').read_text()
  )
  for name in WORKLOADS:
    assert build_workload(name).published_point in range(len(points))


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


def test_calibration_writes_targets_and_point(tmp_path, monkeypatch):
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
  monkeypatch.setattr(
    calibrate, 'tuned_point', lambda name: json.loads(tuned.read_text())[0]
  )
  published = tmp_path / 'tuning_search_spaces' / 'nadamw.json'
  tuned = published.parent / 'local' / 'click_dlrm.json'
  published.parent.mkdir()
  source = study.ROOT / 'tuning_search_spaces' / 'nadamw.json'
  published.write_text(source.read_text())
  monkeypatch.setattr(study, 'ROOT', tmp_path)

  with pytest.raises(InputError, match='again with --tune'):
    calibrate.calibrate('click_dlrm', False, 'runs', 1)
  record = calibrate.calibrate('click_dlrm', True, 'runs', 1)
  points = json.loads(published.read_text())
  base = points[click_dlrm.Workload.published_point]
  # The metric rises with the rate and low is good: down to the last doubling.
  rate = base['learning_rate'] / 64
  assert record['validation_target'] == pytest.approx(0.52 + rate)
  assert record['test_target'] == pytest.approx(0.58)
  assert [run['seed'] for run in record['seeds']] == [0, 1, 2, 3, 4]
  assert len(record['tuning']) == 9
  assert json.loads((tmp_path / 'click_dlrm.json').read_text()) == record
  assert json.loads(tuned.read_text()) == [{**base, 'learning_rate': rate}]
  assert calibrate.calibrate('click_dlrm', False, 'runs', 1) == record


def test_an_unknown_workload_lists_those_that_exist():
  with pytest.raises(InputError, match=r"workloads='x'.*click_dlrm, denoise"):
    calibrate.main(['--workloads=x'])
  with pytest.raises(InputError, match='required: --workloads'):
    calibrate.main([])
