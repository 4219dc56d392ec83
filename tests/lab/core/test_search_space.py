"""Tuning search spaces: lists of points and sampled ranges."""

import json
import math

import numpy as np
import pytest

from lab.core import search_space

RANGES = {
  'learning_rate': {'min': 1e-4, 'max': 1e-2, 'scaling': 'log'},
  'beta': {'min': -1.0, 'max': 3.0, 'scaling': 'linear'},
  'power': {'feasible_points': [1, 2, 4, 'auto']},
}


def write(tmp_path, content):
  path = tmp_path / 'space.json'
  path.write_text(json.dumps(content))
  return str(path)


@pytest.mark.parametrize(('count', 'expected'), [(1, 1), (2, 2), (9, 2)])
def test_a_list_gives_its_points_in_order(tmp_path, count, expected):
  points = [{'a': 1, 'b': 'x'}, {'b': None, 'a': 2.5}]
  loaded = search_space.load(write(tmp_path, points), count, seed=0)
  assert loaded == points[:expected]


def test_hyperparameters_are_a_namedtuple():
  point = search_space.as_hyperparameters({'a': 1, 'b': 'x'})
  assert type(point).__name__ == 'Hyperparameters'
  assert (point.a, point.b) == (1, 'x')
  assert point._asdict() == {'a': 1, 'b': 'x'}


def test_ranges_give_as_many_points_as_asked_in_range(tmp_path):
  points = search_space.load(write(tmp_path, RANGES), 50, seed=3)
  assert len(points) == 50
  for point in points:
    assert list(point) == list(RANGES)
    assert 1e-4 <= point['learning_rate'] < 1e-2
    assert -1 <= point['beta'] < 3
    assert point['power'] in RANGES['power']['feasible_points']


def test_the_seed_decides_the_points(tmp_path):
  path = write(tmp_path, RANGES)
  assert search_space.load(path, 5, 1) == search_space.load(path, 5, 1)
  assert search_space.load(path, 5, 1) != search_space.load(path, 5, 2)
  # Slices of a search run in processes of their own.
  assert search_space.load(path, 5, 1) == search_space.load(path, 8, 1)[:5]


def test_a_seed_may_be_larger_than_torchs():
  (point,) = search_space.sample(RANGES, 1, seed=2**64 + 3)
  assert point in search_space.sample(RANGES, 1, seed=3)


def test_points_spread_evenly():
  points = search_space.sample(RANGES, 64, seed=0)
  # A scrambled Sobol sequence of 64 points has 16 in every quarter exactly;
  # independent ones would have it with a probability below 1e-2 each.
  logs = [math.log10(point['learning_rate']) for point in points]
  counts, _ = np.histogram(logs, bins=4, range=(-4, -2))
  assert counts.tolist() == [16] * 4
  counts, _ = np.histogram([p['beta'] for p in points], 4, range=(-1, 3))
  assert counts.tolist() == [16] * 4
  powers = [point['power'] for point in points]
  assert [powers.count(v) for v in (1, 2, 4, 'auto')] == [16] * 4


def test_a_range_of_one_value_is_that_value():
  for scaling in ('linear', 'log'):
    span = {'min': 0.3, 'max': 0.3, 'scaling': scaling}
    assert search_space.sample({'a': span}, 3, seed=0) == [{'a': 0.3}] * 3
