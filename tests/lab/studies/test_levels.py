"""Arrival at a level, on typed-out curves."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.studies.parts import levels


def test_arrival_is_interpolated_on_the_best_value_so_far():
  steps = [10, 20, 30, 40]
  # The rise at 30 does not count.
  losses = [4.0, 2.0, 3.0, 1.0]
  assert levels.arrival(steps, losses, 3.0, higher=False) == 15.0
  assert levels.arrival(steps, losses, 1.5, higher=False) == 35.0
  assert levels.arrival(steps, losses, 5.0, higher=False) == 10.0
  assert levels.arrival(steps, losses, 0.5, higher=False) is None
  gains = [-loss for loss in losses]
  assert levels.arrival(steps, gains, -1.5, higher=True) == 35.0


def test_values_that_are_not_finite_are_never_at_a_level():
  values = [None, math.nan, 2.0, 1.0]
  assert levels.arrival([1, 2, 3, 4], values, 3.0, higher=False) == 3.0
  assert levels.arrival([1, 2], [None, math.nan], 3.0, higher=False) is None


def test_a_curve_that_is_twice_as_fast_has_half_the_steps():
  steps = list(range(30, 101, 2))
  curves = {
    'raw': [1 / s for s in steps],
    'ema 1 %': [1 / (2 * s) for s in steps],
    'lawa 1 %': [None] * len(steps),
  }
  found = levels.ratios(steps, curves, 100, higher=False)
  assert list(found) == [0.5, 0.6, 0.7, 0.8, 0.9]
  # 1 / s is not linear between two evaluations; the first one is at 30.
  assert found[0.8]['ema 1 %'] == pytest.approx(0.5, abs=1e-3)
  assert found[0.5]['ema 1 %'] == 0.6
  assert found[0.7]['lawa 1 %'] is None


def test_a_level_reached_at_the_first_evaluation_is_left_out():
  steps = [30, 50, 70, 90]
  flat = {'raw': [1.0, 1.0, 0.5, 0.25], 'ema 1 %': [1.0, 0.5, 0.4, 0.2]}
  assert list(levels.ratios(steps, flat, 100, higher=False)) == [0.7, 0.8, 0.9]
  lost = {'raw': [None, None, None, 0.25]}
  assert list(levels.ratios(steps, lost, 100, higher=False)) == [0.9]
  # At 0.8 T the best value is that of step 70.
  assert levels.ratios(steps, flat, 100, False)[0.8]['ema 1 %'] == 50 / 70


@given(st.lists(st.floats(0.1, 10.0), min_size=8, max_size=8))
def test_the_raw_curve_itself_needs_all_its_steps(values):
  steps = list(range(20, 100, 10))
  curves = {'raw': values, 'same': values}
  for by_name in levels.ratios(steps, curves, 100, higher=True).values():
    assert by_name['same'] == 1.0
