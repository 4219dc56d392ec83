"""Bootstrap intervals over studies."""

import math

import numpy as np
import pandas as pd
import pytest

from lab.report import intervals, scores

INF = math.inf


def _studies(times):
  return pd.DataFrame(
    {'submission': s, 'workload': w, 'study': f'study_{i}', 'seconds': t}
    for (s, w), values in times.items()
    for i, t in enumerate(values)
  )


def test_medians_of_all_draws_of_three_studies():
  # Of 27 draws, 7 have the smallest value twice or more, 7 the largest.
  rng = np.random.default_rng(0)
  medians = intervals.resampled_medians([1.0, 2.0, 3.0], rng, 27_000)
  shares = [np.mean(medians == v) for v in (1.0, 2.0, 3.0)]
  # Standard error 0.003.
  assert shares == pytest.approx([7 / 27, 13 / 27, 7 / 27], abs=0.015)


def test_interval_of_a_median_keeps_infinite_values():
  table = intervals.of_medians(
    _studies({('a', 'x'): [1.0, 2.0, INF]}), 'seconds'
  )
  (row,) = table.to_dict('records')
  assert (row['seconds_low'], row['seconds_high']) == (1.0, INF)


def test_one_study_has_an_interval_of_no_width():
  studies = _studies(
    {('a', 'x'): [5.0], ('b', 'x'): [8.0], ('a', 'y'): [INF], ('b', 'y'): [3.0]}
  )
  times = studies.pivot(
    index='submission', columns='workload', values='seconds'
  )
  expected = scores.score(times, ['x', 'y', 'z'])
  table = intervals.of_scores(studies, ['x', 'y', 'z'])
  for row in table.to_dict('records'):
    assert row['score_low'] == row['score_high']
    # Sums in another order.
    assert row['score_low'] == pytest.approx(
      expected[row['submission']], abs=1e-12
    )


def test_interval_of_a_score_knows_held_out_workloads():
  studies = _studies(
    {
      ('a', 'x'): [5.0],
      ('b', 'x'): [8.0],
      ('b', 'x_big'): [3.0],
      ('a', 'y'): [9.0],
      ('b', 'y'): [9.0],
    }
  )
  table = intervals.of_scores(studies, ['x', 'y'], {'x_big': 'x'})
  # a has no logs of x_big, so that b alone reaches x.
  assert table['score_low'].tolist() == pytest.approx([0.5, 1.0], abs=1e-12)


def test_intervals_repeat_and_hold_what_the_draws_give():
  studies = _studies(
    {('a', 'x'): [10.0, 10.0, 10.0], ('b', 'x'): [10.0, 20.0, 41.0]}
  )
  table = intervals.of_scores(studies, ['x'])
  assert table.equals(intervals.of_scores(studies, ['x']))
  a, b = table.to_dict('records')
  assert (a['score_low'], a['score_high']) == pytest.approx((1.0, 1.0))
  # b's median is 10, 20 or, beyond four times the fastest, 41.
  assert (b['score_low'], b['score_high']) == pytest.approx((0.0, 1.0))
