"""Reading evaluations: typed-out CSV rows of our runs and of AlgoPerf's."""

import csv
import io
import math
import types

import pytest

from lab.core import curves

OURS = """\
accumulated_submission_time,global_step,score,validation/loss
1.5,10,1.5,0.9
3.0,20,3.0,0.5
4.5,30,4.5,0.4
6.0,40,6.0,0.45
"""
# As pandas writes them: columns in another order, steps as floats after gaps,
# and the steps after a preemption twice.
ALGOPERF = """\
global_step,validation/wer,accumulated_submission_time,preemption_count
1.0,2.9,18.6,0.0
1712.0,0.64,1458.9,0.0
3424.0,0.30,2900.5,0.0
,,,
3000.0,0.35,2500.0,1.0
4000.0,0.25,3300.0,1.0
"""


def rows(text):
  return list(csv.DictReader(io.StringIO(text)))


def test_our_rows():
  points = curves.curve(rows(OURS), 'validation/loss')
  assert points == [
    (10, 1.5, 0.9),
    (20, 3.0, 0.5),
    (30, 4.5, 0.4),
    (40, 6.0, 0.45),
  ]


def test_algoperf_rows_and_what_a_preemption_repeated():
  points = curves.curve(rows(ALGOPERF), 'validation/wer')
  assert points == [
    (1, 18.6, 2.9),
    (1712, 1458.9, 0.64),
    (3000, 2500.0, 0.35),
    (4000, 3300.0, 0.25),
  ]


@pytest.mark.parametrize('text', ['inf', 'nan', '3.5', 'x', None])
def test_a_step_is_a_whole_number(text):
  assert curves.step_of({'global_step': '9.0'}) == 9
  with pytest.raises((ValueError, TypeError)):
    curves.step_of({'global_step': text})


def test_a_file(tmp_path):
  path = tmp_path / 'eval_measurements.csv'
  path.write_text(OURS)
  assert len(curves.read_curve(str(path), 'validation/loss')) == 4
  assert curves.read_curve(str(path), 'validation/accuracy') == []
  path.write_text('')
  assert curves.read_curve(str(path), 'validation/loss') == []


@pytest.mark.parametrize(
  ('target', 'higher', 'step'),
  [
    (0.5, False, 20),  # equal counts
    (0.42, False, 30),
    (0.1, False, None),
    (0.9, True, 10),
    (0.95, True, None),
  ],
)
def test_first_at_target(target, higher, step):
  points = curves.curve(rows(OURS), 'validation/loss')
  reached = curves.first_at_target(points, target, higher)
  assert (reached and reached.step) == step


def test_nan_never_reaches_a_target_and_is_never_best():
  points = [curves.Point(1, 1.0, math.nan), curves.Point(2, 2.0, 0.7)]
  for higher in (False, True):
    assert curves.first_at_target(points[:1], 0.5, higher) is None
    assert curves.best(points, higher) == 0.7
    assert curves.best(points[:1], higher) is None
    assert curves.best([], higher) is None


def test_best_goes_by_direction():
  points = curves.curve(rows(OURS), 'validation/loss')
  assert curves.best(points, higher_is_better=False) == 0.4
  assert curves.best(points, higher_is_better=True) == 0.9


@pytest.mark.parametrize('higher', [False, True])
@pytest.mark.parametrize('target', [0.0, 0.4, 30.0])
def test_direction_of_a_workload_that_does_not_say(higher, target):
  def reached(result):
    value = result['validation/x']
    return value > target if higher else value < target

  workload = types.SimpleNamespace(
    target_metric_name='x',
    validation_target_value=target,
    has_reached_validation_target=reached,
  )
  assert curves.higher_is_better(workload) is higher
  workload.higher_is_better = not higher
  assert curves.higher_is_better(workload) is not higher
