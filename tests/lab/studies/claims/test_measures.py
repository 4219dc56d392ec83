"""Numbers from typed curves: steps, levels, gains."""

import math

import pytest
from study_runs import curve, result

from lab.studies.claims import measures
from lab.studies.claims.budgets import gap_closed


def typed(target=0.5, higher=False, budget=100, **values):
  """A run with an evaluation every 10 steps, 0.1 s a step."""
  curves = {
    name: [[10 * i, float(i), v] for i, v in enumerate(own, 1)]
    for name, own in values.items()
  }
  found = result(curves, budget_steps=budget, evaluated_every=10)
  return found | {'target': target, 'higher_is_better': higher}


FALLING = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def test_the_goal_is_the_target_where_the_raw_weights_reach_it():
  assert measures.goal(typed(raw=FALLING)) == 0.5
  # Never: their best value within 75 of 100 steps.
  assert measures.goal(typed(target=0.05, raw=FALLING)) == 0.4
  rising = [1 - v for v in FALLING]
  missed = typed(target=0.95, higher=True, raw=rising)
  assert measures.goal(missed) == pytest.approx(0.6)
  assert measures.goal(typed(raw=[math.nan] * 10)) is None


def test_a_level_is_the_best_value_so_far():
  run = typed(raw=[0.3, 0.6, math.nan, *FALLING[3:]])
  assert measures.level_at(run, 0.5) == 0.3


def test_a_ratio_compares_arrivals():
  run = typed(raw=FALLING, ema=[0.9, 0.7, 0.5, *FALLING[3:]], slow=[1.0] * 10)
  assert measures.ratio(run, 'ema', 0.5) == 30 / 60
  assert measures.ratio(run, 'ema', 0.5, seconds=True) == 3.0 / 6.0
  assert measures.ratio(run, 'raw', 0.5) == 1.0
  # It never arrives: as if at twice its T.
  assert measures.ratio(run, 'slow', 0.5) == 200 / 60
  assert measures.ratio(run, 'slow', 0.5, seconds=True) == 20.0 / 6.0
  # The baseline never arrives, or there is no level.
  assert measures.ratio(run, 'ema', 0.5, baseline_name='slow') is None
  assert measures.ratio(run, 'ema', None) is None
  other = typed(raw=[0.5] * 10)
  assert measures.ratio(other, 'raw', 0.5, run, 'ema') == 10 / 30


def test_a_value_between_two_evaluations_is_linear():
  run = typed(raw=FALLING)
  assert measures.value_at(run, 'raw', 0.5) == 0.6
  assert measures.value_at(run, 'raw', 0.25) == pytest.approx(0.85)
  assert measures.final(run) == 0.1
  assert measures.final(typed(raw=[*FALLING[:-1], math.nan])) is None
  # Measured too late, or ended too early, to say.
  late = result({'raw': curve(50, first=50)})
  assert measures.value_at(late, 'raw', 0.25) is None
  assert measures.value_at(late, 'raw', 0.49) == 0.1
  assert measures.final(typed(raw=FALLING[:5])) is None


def test_a_gain_points_in_the_metrics_direction():
  assert measures.gain(0.5, 1.0, higher_is_better=False) == 0.5
  assert measures.gain(0.5, 1.0, higher_is_better=True) == -0.5
  assert measures.gain(None, 1.0, higher_is_better=True) is None


def test_a_spread_is_a_sample_standard_deviation():
  assert measures.spread([1.0, 2.0, None, 3.0]) == 1.0
  assert measures.spread([1.0, None]) is None
  assert measures.spread([1.0, 1.0]) is None


def test_the_cost_of_an_average_is_a_share_of_training():
  run = typed(raw=FALLING) | {'averaging_seconds': {'raw': 2.0, 'ema': 2.4}}
  # 10 s of which 2 were spent on counting steps.
  assert measures.averaging_share(run, 'ema') == pytest.approx(0.4 / 8.0)


@pytest.mark.parametrize(
  ('numbers', 'expected'),
  [
    ((1.0, 0.8, 0.5, False), 0.4),
    ((0.5, 0.8, 1.0, True), 0.6),
    ((1.0, 0.4, 0.5, False), 1.2),
    ((1.0, 0.9, 1.0, False), None),
    ((1.0, None, 0.5, False), None),
    # The shorter run is the worse one.
    ((1.0, 0.9, 1.1, False), None),
    ((1.0, 1.1, 0.9, True), None),
  ],
)
def test_the_gap_to_a_shorter_run_is_closed_in_part(numbers, expected):
  assert gap_closed(*numbers) == (
    None if expected is None else pytest.approx(expected)
  )
