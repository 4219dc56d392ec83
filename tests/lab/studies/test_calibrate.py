"""The arithmetic of tuning and of the 75 % rule, on typed-out values."""

import json
import math

import pytest

from lab.studies import calibrate
from lab.workloads import WORKLOADS, click_dlrm


def test_best_row_ignores_runs_without_a_finite_value():
  rows = [[1, math.nan], [2, 0.3], [3, None], [4, 0.7], [5, math.inf]]
  assert calibrate.best_row(rows, 1, higher_is_better=True) == [4, 0.7]
  assert calibrate.best_row(rows, 1, higher_is_better=False) == [2, 0.3]
  assert calibrate.best_row([[1, math.nan]], 1, True) is None
  assert calibrate.best_row([], 1, True) is None


def test_target_is_the_median_over_seeds():
  assert calibrate.median_target([0.3, 0.1, 0.5, 0.2, 0.4]) == 0.3
  for values in ([0.3, None, 0.2], []):
    with pytest.raises(ValueError, match='Every seed must have one'):
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


def test_tuning_takes_the_best_of_five_rates():
  curve = Curve({-2: 5.0, -1: 4.0, 0: 3.5, 1: 3.0, 2: 3.2})
  rate, rows = calibrate.tune(0.01, curve, higher_is_better=False)
  assert rate == 0.02
  assert curve.calls == [[-2, -1, 0, 1, 2]]
  assert rows == [
    [0.0025, 5.0],
    [0.005, 4.0],
    [0.01, 3.5],
    [0.02, 3.0],
    [0.04, 3.2],
  ]


def test_tuning_goes_on_while_the_best_rate_is_at_the_edge():
  up = Curve({-2: 1, -1: 2, 0: 3, 1: 4, 2: 5, 3: 6, 4: 5.5})
  rate, rows = calibrate.tune(0.01, up, higher_is_better=True)
  assert rate == 0.08
  assert up.calls == [[-2, -1, 0, 1, 2], [3], [4]]
  assert [row[1] for row in rows] == [1, 2, 3, 4, 5, 6, 5.5]
  down = Curve({-3: 2.0, -2: 1.0, -1: 3.0})
  rate, _ = calibrate.tune(0.01, down, higher_is_better=False)
  assert rate == 0.0025
  assert down.calls == [[-2, -1, 0, 1, 2], [-3]]


def test_tuning_stops_at_its_widest_and_refuses_a_grid_that_diverges():
  endless = Curve({d: d for d in range(-9, 9)})
  rate, _ = calibrate.tune(0.01, endless, higher_is_better=True)
  assert rate == 0.64
  with pytest.raises(ValueError, match='finite metric'):
    calibrate.tune(0.01, Curve({}), higher_is_better=True)


def test_every_workload_has_a_published_point():
  assert calibrate.BASE_POINTS.keys() == WORKLOADS.keys()


def test_runs_are_repeatable_and_finished_ones_are_kept(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(click_dlrm.Workload, 'steps', 100)
  monkeypatch.setattr(
    click_dlrm.Workload,
    'sizes',
    {'eval_train': 100, 'validation': 100, 'test': 100},
  )
  point = {'learning_rate': 0.01, 'warmup_factor': 0.1, 'dropout_rate': 0.1}
  job = calibrate.Job('click_dlrm', point, seed=3)
  first, second = calibrate.train(job), calibrate.train(job)
  for result in (first, second):
    assert result.pop('seconds') >= 0
  assert first == second
  assert first['seed'] == 3
  # 75 of 100 steps, an evaluation every 2 steps of their second half.
  assert first['validation_step'] in {*range(38, 75, 2), 75}
  assert 0.3 < first['validation'] < 1.0

  runs = calibrate.Runs(tmp_path, click_dlrm.Workload(), jobs=1)
  runs._folder.mkdir()
  runs._keep(job, {**first, 'seconds': 1.0})
  assert 'lr=0.01 seed=3' in capsys.readouterr().out
  monkeypatch.setattr(calibrate, 'train', None)  # must not be needed
  assert runs([job]) == [{**first, 'seconds': 1.0}]
  assert len(list(runs._folder.iterdir())) == 1


def test_calibration_writes_targets_and_point(tmp_path, monkeypatch):
  def results(self, jobs):
    return [
      {
        'seed': job.seed,
        'validation': 0.5 + 0.01 * job.seed + job.point['learning_rate'],
        'test': 0.6 - 0.01 * job.seed,
      }
      for job in jobs
    ]

  monkeypatch.setattr(calibrate.Runs, '__call__', results)
  monkeypatch.setattr(calibrate.targets, '_FOLDER', tmp_path)
  published = tmp_path / 'tuning_search_spaces' / 'nadamw.json'
  published.parent.mkdir()
  source = calibrate.ROOT / 'tuning_search_spaces' / 'nadamw.json'
  published.write_text(source.read_text())
  monkeypatch.setattr(calibrate, 'ROOT', tmp_path)

  with pytest.raises(ValueError, match='again with --tune'):
    calibrate.calibrate('click_dlrm', False, tmp_path / 'runs', 1)
  record = calibrate.calibrate('click_dlrm', True, tmp_path / 'runs', 1)
  base = json.loads(published.read_text())[calibrate.BASE_POINTS['click_dlrm']]
  # The metric rises with the rate and low is good: down to the last doubling.
  rate = base['learning_rate'] / 64
  assert record['validation_target'] == pytest.approx(0.52 + rate)
  assert record['test_target'] == pytest.approx(0.58)
  assert [run['seed'] for run in record['seeds']] == [0, 1, 2, 3, 4]
  assert len(record['tuning']) == 9
  assert json.loads((tmp_path / 'click_dlrm.json').read_text()) == record
  tuned = tmp_path / 'tuning_search_spaces' / 'local' / 'click_dlrm.json'
  assert json.loads(tuned.read_text()) == [{**base, 'learning_rate': rate}]
  again = calibrate.calibrate('click_dlrm', False, tmp_path / 'runs', 1)
  assert again == record
