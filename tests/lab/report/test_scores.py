"""Profiles and scores: literal arithmetic, a slow reference, properties."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.report import scores

INF = math.inf


def _slow_score(times, base):
  """Score of each submission by loops over the definition."""
  taus = [1 + 3 * i / 99 for i in range(100)]
  result = {}
  for name, own in times.items():
    heights = []
    for tau in taus:
      count = 0
      for workload in base:
        fastest = min(t.get(workload, INF) for t in times.values())
        time = own.get(workload, INF)
        count += time < INF and time <= 4 * fastest and time / fastest <= tau
      heights.append(count / len(base))
    pairs = itertools.pairwise(heights)
    result[name] = sum((a + b) / 2 for a, b in pairs) / 99
  return result


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


@settings(deadline=None, max_examples=60)
@given(_GROUPS)
def test_score_equals_the_slow_reference(times):
  base = ['x', 'y', 'z']
  fast = scores.score(_frame(times), base)
  for name, expected in _slow_score(times, base).items():
    # Rounding in tau itself may move a step of the profile by one point.
    assert fast[name] == pytest.approx(expected, abs=3.1 / 99)
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
