"""Profiles and scores: literal arithmetic, a slow reference, properties."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_scores import slow_scores

from lab.report import scores

INF = math.inf


def _frame(times):
  return pd.DataFrame.from_dict(times, orient='index')


def test_ratios_by_hand():
  times = _frame(
    {'a': {'x': 10.0, 'y': INF}, 'b': {'x': 40.0, 'y': 6.0}, 'c': {'x': 41.0}}
  )
  ratios = scores.ratios(times, ['x', 'y', 'z'])
  assert ratios.loc['a'].tolist() == [1.0, INF, INF]
  # Four times the fastest still counts, more does not.
  assert ratios.loc['b'].tolist() == [4.0, 1.0, INF]
  assert ratios.loc['c'].tolist() == [INF, INF, INF]


def test_missing_a_held_out_workload_is_missing_its_base_workload():
  times = _frame(
    {
      'a': {'x': 10.0, 'x_big': INF},
      'b': {'x': 30.0, 'x_big': 7.0},
      'c': {'x': 39.0, 'x_big': 28.0},
      'd': {'x': 39.0, 'x_big': 28.5},
      'e': {'x': 41.0, 'x_big': 7.0},
      'f': {'x': INF, 'x_big': 1.0},
    }
  )
  ratios = scores.ratios(times, ['x'], {'x_big': 'x'})
  # f misses x, so its 1 s on x_big is not the fastest: 7 s is, and 28.5 s is
  # beyond four times it. a is the fastest on x when e is judged by four times
  # that, and no longer once a has missed x_big: b is the fastest of the rest.
  assert ratios['x'].tolist() == [INF, 1.0, 1.3, INF, INF, INF]


def test_a_target_reached_at_zero_seconds_is_the_fastest():
  times = _frame({'a': {'x': 0.0}, 'b': {'x': 1.0}, 'c': {'x': INF}})
  assert scores.ratios(times, ['x'])['x'].tolist() == [1.0, INF, INF]


def test_score_by_hand():
  # b is within tau from tau = 2 on: 66 of 99 steps, and half of the step
  # before, at whose right end tau = 1 + 33 * 3 / 99 = 2 is reached.
  times = _frame({'a': {'x': 5.0}, 'b': {'x': 10.0}})
  score = scores.score(times, ['x'])
  assert score['a'] == pytest.approx(1.0, abs=1e-15)
  assert score['b'] == pytest.approx(66.5 / 99, abs=1e-15)


def test_profile_is_a_fraction_of_the_base_workloads():
  times = _frame({'a': {'x': 5.0, 'other': 1.0}, 'b': {'x': 10.0, 'other': 1}})
  profile = scores.profiles(scores.ratios(times, ['x', 'missing']))
  assert profile.loc['a', 1.0] == 0.5
  assert profile.loc['b', 1.0] == 0.0
  assert profile.loc['b', 4.0] == 0.5


_TIMES = st.one_of(st.just(INF), st.floats(1.0, 1e5))
_GROUPS = st.dictionaries(
  st.sampled_from('abcdef'),
  st.fixed_dictionaries({w: _TIMES for w in ('x', 'y', 'z')}),
  min_size=1,
)


@settings(deadline=None, max_examples=100)
@given(
  _GROUPS,
  st.sampled_from([{}, {'z': 'x'}, {'z': 'y'}, {'y': 'x', 'z': 'x'}]),
)
def test_score_equals_the_slow_reference(times, held_out):
  base = [w for w in ('x', 'y', 'z') if w not in held_out]
  fast = scores.score(_frame(times), base, held_out)
  for name, expected in slow_scores(times, base, held_out.items()).items():
    assert fast[name] == pytest.approx(expected, abs=1e-12)
    assert 0 <= fast[name] <= 1 + 1e-12


@settings(deadline=None, max_examples=60)
@given(_GROUPS, st.sampled_from(['x', 'y', 'z']), st.sampled_from([0.25, 8.0]))
def test_score_does_not_depend_on_a_workloads_unit(times, workload, unit):
  # Powers of two scale exactly, so that equality is exact.
  scaled = {n: {**t, workload: unit * t[workload]} for n, t in times.items()}
  base = ['x', 'y', 'z']
  before = scores.score(_frame(times), base)
  pd.testing.assert_series_equal(before, scores.score(_frame(scaled), base))


@settings(deadline=None, max_examples=60)
@given(_GROUPS, st.floats(0.1, 1.0))
def test_a_faster_submission_never_scores_less(times, factor):
  base = ['x', 'y', 'z']
  name = min(times)
  faster = times | {name: {w: factor * t for w, t in times[name].items()}}
  before = scores.score(_frame(times), base)[name]
  assert scores.score(_frame(faster), base)[name] >= before - 1e-12


def test_speed_up_is_a_geometric_mean_with_missed_targets_at_the_budget():
  times = _frame({'base': {'x': 10.0, 'y': 9.0}, 'b': {'x': 20.0, 'y': INF}})
  speed = scores.speed_ups(times, 'base', ['x', 'y'], {'x': None, 'y': 17.0})
  assert speed['base'] == 1.0
  # y: missed, 17 s of budget and one second, over 9 s.
  assert speed['b'] == pytest.approx(2.0, abs=1e-15)
  unknown = scores.speed_ups(times, 'base', ['x', 'y'], {})
  assert math.isnan(unknown['b'])


def test_profile_points_are_those_of_the_published_scoring():
  taus = scores.profiles(
    scores.ratios(_frame({'a': {'x': 1.0}}), ['x'])
  ).columns
  np.testing.assert_array_equal(taus, np.linspace(1.0, 4.0, 100))
