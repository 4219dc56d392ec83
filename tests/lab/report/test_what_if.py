"""Changes of a submission and what they are worth."""

import math

import pandas as pd
import pytest

from lab.core.errors import InputError
from lab.report import scores, what_if

INF = math.inf
BASE = ['x', 'y']
TIMES = pd.DataFrame({'x': [10.0, 20.0], 'y': [INF, 8.0]}, index=['a', 'b'])


def _parse(text):
  return what_if.parse(text, ['a', 'b', 'c:d'], BASE)


def test_parses_factors_and_times():
  change = _parse('c:d:x0.5, y=7,x0.5')
  assert change.submission == 'c:d'
  assert (change.factor, change.seconds) == (0.25, {'y': 7.0})


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    ('z:x0.5', 'Must be SUBMISSION:xFACTOR'),
    ('a', 'Must be SUBMISSION:xFACTOR'),
    ('a:', "'' must be xFACTOR or WORKLOAD=SECONDS, WORKLOAD among x, y."),
    ('a:z=5', "'z=5' must be xFACTOR"),
    ('a:x=-5', r"'-5' must be a number in \(0, inf\)"),
    ('a:xinf', r"'inf' must be a number in \(0, inf\)"),
    ('a:x=nan', r"'nan' must be a number in \(0, inf\)"),
    ('a:x1e200,x1e200', r"'inf' must be a number in \(0, inf\)"),
    ('a:x=5,x=6', 'x is given twice'),
    ('a:x0', r"'0' must be a number in \(0, inf\)"),
  ],
)
def test_refuses_what_is_not_a_change(text, reason):
  with pytest.raises(InputError, match=f'^Invalid what_if=.*{reason}'):
    _parse(text)


def test_outcome_is_the_score_of_the_changed_group():
  outcome = what_if.outcome(TIMES, BASE, _parse('a:x2,y=8'))
  changed = pd.DataFrame({'x': [20.0, 20.0], 'y': [8.0, 8.0]}, index=['a', 'b'])
  assert outcome['score_after'] == scores.score(changed, BASE)['a'] == 1.0
  assert outcome['score_before'] == scores.score(TIMES, BASE)['a'] == 0.5
  assert outcome['gain'] == 0.5
  assert outcome['scores_after']['b'] == 1.0
  # The group itself has not changed.
  assert TIMES.loc['a', 'x'] == 10.0


def test_one_more_workload_is_reached_when_another_submission_did():
  rows = what_if.value_of_changes(TIMES, BASE, {'x': 1.0, 'y': 1.0})
  a, b = rows
  assert (a['workload'], a['reached_at_seconds']) == ('y', 8.0)
  assert a['gain_by_one_more_workload'] == pytest.approx(0.5, abs=1e-12)
  assert a['gain_by_fewer_steps'] == 0.0
  # b reaches all; 10 % fewer steps bring x from 2 to 1.8 times the fastest.
  assert b['workload'] is None
  assert math.isnan(b['gain_by_one_more_workload'])
  faster = scores.score(TIMES.mul([1.0, 0.9], axis=0), BASE)['b']
  assert b['gain_by_fewer_steps'] == faster - b['score'] > 0.02


def test_workload_that_another_reaches_comes_first():
  times = pd.DataFrame({'x': [INF, 9.0], 'y': [INF, INF]}, index=['a', 'b'])
  first, _ = what_if.value_of_changes(times, BASE, {'x': 1.0, 'y': 33.0})
  assert (first['workload'], first['reached_at_seconds']) == ('x', 9.0)


def test_workload_that_nobody_reaches_counts_at_the_budget():
  times = pd.DataFrame({'x': [10.0, 9.0], 'y': [INF, INF]}, index=['a', 'b'])
  first, _ = what_if.value_of_changes(times, BASE, {'x': 1.0, 'y': 33.0})
  assert (first['workload'], first['reached_at_seconds']) == ('y', 33.0)
  first, _ = what_if.value_of_changes(times, BASE, {'x': 1.0, 'y': None})
  assert first['workload'] is None


def test_one_more_workload_is_reached_with_its_held_out_workload():
  times = pd.DataFrame(
    {'x': [10.0, 9.0], 'x_big': [INF, 8.0], 'y': [5.0, 5.0]}, index=['a', 'b']
  )
  held_out = {'x_big': 'x'}
  a, b = what_if.value_of_changes(times, BASE, {}, held_out)
  assert (a['score'], b['score']) == pytest.approx((0.5, 1.0), abs=1e-12)
  # a reaches x at 10 s already; with x_big at b's 8 s it counts.
  assert (a['workload'], a['reached_at_seconds']) == ('x', 10.0)
  counts = scores.score(times[['x', 'y']], BASE)['a']
  assert a['gain_by_one_more_workload'] == pytest.approx(counts - 0.5)
  assert b['workload'] is None
  change = what_if.parse('a:x_big=9', ['a'], [*BASE, 'x_big'])
  outcome = what_if.outcome(times, BASE, change, held_out)
  assert outcome['score_after'] == counts
  # Nobody else reaches x_big: its budget counts.
  alone = times.iloc[:1]
  (a,) = what_if.value_of_changes(alone, BASE, {'x_big': 7.0}, held_out)
  assert (a['workload'], a['gain_by_one_more_workload']) == ('x', 0.5)
  (a,) = what_if.value_of_changes(alone, BASE, {'x': 7.0}, held_out)
  assert a['workload'] is None
