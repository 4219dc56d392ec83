"""Intervals and verdicts in cases whose answer is known."""

import math

import numpy as np
import pytest

from lab.studies.claims import statistics
from lab.studies.claims.claim import ABOVE_ONE, BELOW_ONE, NOT_WORSE
from lab.studies.claims.statistics import Interval, interval, verdict

WORKLOADS = ('p', 'q', 'r', 's')


def effects_of(values_by_workload):
  return {
    (workload, seed): value
    for workload, values in values_by_workload.items()
    for seed, value in enumerate(values)
  }


def around(center, noise=0.02, seed=1):
  """Five seeds on four workloads, scattered around a centre."""
  draws = np.random.default_rng(seed).normal(center, noise, (4, 5))
  return effects_of(dict(zip(WORKLOADS, draws.tolist(), strict=True)))


@pytest.mark.parametrize(
  ('center', 'expected'),
  [
    (0.8, statistics.HOLDS),
    (1.0, statistics.UNDECIDED),
    (1.2, statistics.FAILS),
  ],
)
def test_an_effect_of_known_size_is_found(center, expected):
  found = interval(around(center))
  assert found.low < center < found.high
  assert found.high - found.low < 0.04
  assert verdict(found, BELOW_ONE) == expected


def test_exactly_no_effect_is_undecided():
  found = interval(effects_of({w: [1.0] * 5 for w in WORKLOADS}))
  assert found == Interval(1.0, 1.0, 1.0)
  assert verdict(found, BELOW_ONE) == statistics.UNDECIDED
  assert verdict(found, ABOVE_ONE) == statistics.UNDECIDED


def test_one_of_four_workloads_that_disagrees_makes_it_undecided():
  found = interval(
    effects_of({'p': [0.8] * 5, 'q': [0.8] * 5, 'r': [0.8] * 5, 's': [1.2] * 5})
  )
  # It is drawn at least three times out of four in 13 of 256 draws: more than
  # the 2.5 % above the interval. Pooled, 15 values below 1 would hide 5 above.
  assert found == Interval(0.8, 0.8, 1.2)
  assert verdict(found, BELOW_ONE) == statistics.UNDECIDED


def test_two_of_two_workloads_must_agree():
  agreeing = interval(effects_of({'p': [0.7] * 3, 'q': [0.9] * 3}))
  assert agreeing == Interval(pytest.approx(0.8), 0.7, 0.9)
  assert verdict(agreeing, BELOW_ONE) == statistics.HOLDS
  # Each is drawn twice in a quarter of the draws.
  other = interval(effects_of({'p': [0.7] * 3, 'q': [1.1] * 3}))
  assert verdict(other, BELOW_ONE) == statistics.UNDECIDED


def test_the_interval_is_that_of_a_slow_two_level_bootstrap():
  groups = {'p': [1.0, 2.0, 4.0], 'q': [3.0, 5.0, 6.0], 'r': [0.5, 1.5, 2.5]}
  rng = np.random.default_rng(7)
  medians = []
  for _ in range(20_000):
    values = []
    for workload in rng.choice(list(groups), size=len(groups)):
      values += rng.choice(groups[workload], size=3).tolist()
    medians.append(np.median(values))
  low, high = np.percentile(medians, [2.5, 97.5])
  found = interval(effects_of(groups))
  assert found.median == 2.5
  # Medians are multiples of a half: the percentiles are such values.
  assert (found.low, found.high) == (low, high)


def test_on_one_workload_seeds_alone_are_drawn():
  found = interval(effects_of({'p': [0.7, 0.8, 0.9]}))
  assert found == Interval(0.8, 0.7, 0.9)


def test_workloads_count_alike_whatever_their_number_of_seeds():
  found = interval(effects_of({'p': [0.0], 'q': [1.0] * 9}))
  assert (found.low, found.high) == (0.0, 1.0)


def test_unknown_effects_are_left_out():
  effects = {('p', 0): 0.5, ('p', 1): None, ('q', 0): math.nan, ('q', 1): 0.7}
  assert statistics.by_workload(effects) == {'p': [0.5], 'q': [0.7]}
  assert statistics.median(effects) == pytest.approx(0.6)


@pytest.mark.parametrize('effects', [{}, {('p', 0): 0.5}, {('p', 0): None}])
def test_below_two_values_nothing_is_decided(effects):
  found = interval(effects)
  assert math.isnan(found.low)
  assert verdict(found, BELOW_ONE) == statistics.UNDECIDED


def test_the_resampling_has_a_seed():
  assert interval(around(0.9)) == interval(around(0.9))


@pytest.mark.parametrize(
  ('low', 'high', 'expected'),
  [
    (-0.5, 0.5, statistics.HOLDS),
    (-1.0, 0.5, statistics.UNDECIDED),
    (-2.0, -1.0, statistics.UNDECIDED),
    (-2.0, -1.5, statistics.FAILS),
  ],
)
def test_not_worse_is_above_minus_one_spread(low, high, expected):
  assert verdict(Interval(0.0, low, high), NOT_WORSE) == expected


def test_a_range_has_two_ends():
  within = (-1.0, 1.0)
  assert verdict(Interval(0.0, -0.5, 0.5), within) == statistics.HOLDS
  assert verdict(Interval(2.0, 1.5, 2.5), within) == statistics.FAILS
  assert verdict(Interval(1.0, 0.5, 1.5), within) == statistics.UNDECIDED


def test_a_claim_about_every_workload_needs_every_workload():
  good, none, bad = [0.8, 0.81, 0.79], [0.9, 1.0, 1.1], [1.2, 1.3, 1.25]
  groups = {'p': good, 'q': none, 'r': bad}
  assert statistics.verdicts(effects_of(groups), BELOW_ONE) == {
    'p': statistics.HOLDS,
    'q': statistics.UNDECIDED,
    'r': statistics.FAILS,
  }
  assert statistics.verdicts({}, BELOW_ONE) == {}
