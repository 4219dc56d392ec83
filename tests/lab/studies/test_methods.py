"""The terms and ranges of each method, and the points that it starts from."""

import json

import pytest
from study_runs import POINT

from lab.studies import tune
from lab.studies.parts import (
  search,
  training,
  tuned,
)
from lab.studies.parts.methods import METHODS
from lab.workloads import (
  WORKLOADS,
  build_workload,
)


def test_points_have_the_terms_of_their_method():
  nadamw = tune.training('click_dlrm', 'nadamw', POINT, 0)
  shampoo = tune.training('click_dlrm', 'shampoo', POINT, 0)
  assert nadamw.point['beta2'] == 0.99
  assert 'one_minus_beta2' not in nadamw.point
  assert shampoo.point == POINT
  assert nadamw.submission == 'nadamw'


@pytest.mark.parametrize('method', METHODS)
def test_trials_of_all_methods_have_the_same_values_of_what_they_share(method):
  ranges = METHODS[method].ranges(search.RANGES)
  shared = search.points(search.RANGES, 64, 0)
  own = search.points(ranges, 64, 0)
  names = set(ranges) & set(search.RANGES)
  assert {'learning_rate', 'one_minus_beta2', 'weight_decay'} <= names
  # With more dimensions, the places of the last values may move by rounding.
  for name in names:
    expected = [point[name] for point in shared]
    assert [point[name] for point in own] == pytest.approx(expected, rel=1e-12)
  if 'one_minus_interpolation' in ranges:
    assert 'one_minus_beta1' not in ranges
    expected = [point['one_minus_beta1'] for point in shared]
    found = [point['one_minus_interpolation'] for point in own]
    assert found == pytest.approx(expected, rel=1e-12)


def test_other_shared_ranges_hold_for_all_methods():
  span = {'min': 0.3, 'max': 0.4, 'scaling': 'linear'}
  changed = METHODS['nadamw_primal'].ranges(
    {**search.RANGES, 'one_minus_beta1': span}
  )
  assert changed['one_minus_interpolation'] == span
  assert changed['averaging_horizon']['max'] == 0.2


def test_a_method_without_a_budget_warms_up_by_steps():
  (point,) = search.points(
    METHODS['nadamw_schedule_free'].ranges(search.RANGES), 1, 0
  )
  assert 'warmup_factor' not in point
  found = METHODS['nadamw_schedule_free'].point(point)
  assert found['warmup_steps'] == round(point['warmup_steps'])
  assert isinstance(found['warmup_steps'], int)
  assert found['schedule_free_power'] == point['one_plus_power'] - 1.0
  assert found['averaging_interpolation'] == (
    1.0 - point['one_minus_interpolation']
  )
  assert found['schedule'] == 'constant'
  # Warm-ups of the other methods on all workloads are in the range.
  span = METHODS['nadamw_schedule_free'].ranges(search.RANGES)['warmup_steps']
  shared = search.RANGES['warmup_factor']
  budgets = [
    tune.BUDGET_FACTOR * build_workload(name).step_hint for name in WORKLOADS
  ]
  assert span['min'] <= shared['min'] * min(budgets)
  assert shared['max'] * max(budgets) <= span['max']


@pytest.mark.parametrize('method', METHODS)
def test_a_point_and_the_terms_of_its_search_belong_together(method):
  own = METHODS[method]
  for point in search.points(own.ranges(search.RANGES), 8, 0):
    back = own.searched(own.point(point))
    if 'warmup_steps' in point:
      point['warmup_steps'] = round(point['warmup_steps'])
    found = {name: back[name] for name in point}
    assert found == pytest.approx(point, rel=1e-12)


def test_methods_without_a_search_start_from_their_base(monkeypatch, tmp_path):
  monkeypatch.setattr(training, 'ROOT', tmp_path)
  path = training.tuned_path('click_dlrm')
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps([METHODS['nadamw'].point(POINT)]))
  found = training.tuned_point('click_dlrm', 'nadamw_schedule_free')
  # 2 / (1 - 0.99) steps.
  assert found['warmup_steps'] == 200
  assert 'warmup_factor' not in found
  assert found['one_minus_beta1'] == 1.0
  # Shampoo's own point is the base of its form, once there is one.
  primal = training.tuned_point('click_dlrm', 'shampoo_primal')
  assert primal['one_minus_beta2'] == pytest.approx(0.01)
  assert primal['averaging_horizon'] == 0.03
  other = training.tuned_path('click_dlrm', 'shampoo')
  other.write_text(json.dumps([POINT | {'learning_rate': 0.5}]))
  primal = training.tuned_point('click_dlrm', 'shampoo_primal')
  assert (primal['learning_rate'], primal['one_minus_beta1']) == (0.5, 1.0)


def test_kinds_that_share_a_point_share_a_run(monkeypatch, tmp_path):
  monkeypatch.setattr(training, 'ROOT', tmp_path)
  monkeypatch.setattr(tuned, 'ROOT', tmp_path)
  path = training.tuned_path('click_dlrm')
  path.parent.mkdir(parents=True)
  one, other = POINT, POINT | {'learning_rate': 0.02}
  path.write_text(json.dumps([METHODS['nadamw'].point(one)]))
  assert tuned.kinds_by_point('click_dlrm', 'nadamw') == [
    (METHODS['nadamw'].point(one), ('raw',))
  ]
  points = {'raw': one, 'lawa': other, 'ema': one, 'polynomial': other}
  record = {'winners': {kind: {'point': p} for kind, p in points.items()}}
  folder = tuned.folder('click_dlrm', 'nadamw')
  folder.mkdir(parents=True)
  (folder / 'search.json').write_text(json.dumps(record))
  assert tuned.kinds_by_point('click_dlrm', 'nadamw') == [
    (METHODS['nadamw'].point(one), ('raw', 'ema')),
    (METHODS['nadamw'].point(other), ('lawa', 'polynomial')),
  ]
