"""Time to target against a hyperparameter."""

import math

import numpy as np
import pytest

from lab.report import hyperparameters as sweeps
from lab.report import targets
from lab.report.log_files import Evaluation, Trial

GOALS = {'x': targets.Goal(metric='loss', target=0.5, step_hint=1000)}


def _trial(number, step, point, value=0.1):
  return Trial(
    submission='a',
    study='study_0',
    workload='x',
    framework='jax',
    trial=number,
    evaluations=(Evaluation(step=step, seconds=1.0, value=value),),
    hyperparameters=point,
  )


def test_a_row_per_trial_with_the_hyperparameter():
  trials = [
    _trial(1, 800, {'averaging_horizon': 0.01}),
    _trial(2, 700, {'averaging_horizon': 0.1}),
    _trial(3, 900, {'averaging_horizon': 0.5}, value=0.9),
    _trial(4, 100, {}),
    _trial(5, 100, {'averaging_horizon': 'long'}),
    _trial(6, 100, {'averaging_horizon': 10**400}),
  ]
  table = sweeps.points(trials, GOALS, sweeps.HORIZON)
  assert table['value'].tolist() == [0.01, 0.1, 0.5]
  assert table['fraction_of_budget'].tolist() == [0.8, 0.7, math.inf]


def test_nothing_to_show_without_two_values():
  trials = [_trial(i, 800, {'learning_rate': 0.1}) for i in (1, 2)]
  assert sweeps.points(trials, GOALS, sweeps.LEARNING_RATE).empty
  assert sweeps.points([], GOALS, sweeps.HORIZON).empty


def test_schedules_are_named_with_their_length():
  trials = [
    _trial(1, 800, {'schedule': 'constant'}),
    _trial(2, 700, {'schedule_factor': 0.5}),
    _trial(3, 700, {}),
  ]
  table = sweeps.points(trials, GOALS, sweeps.SCHEDULE)
  assert table['value'].tolist() == ['constant x 1', 'cosine x 0.5']


def test_fit_finds_the_vertex_of_a_parabola():
  values = 10.0 ** np.array([-3.0, -2.0, -1.5, -1.0])
  fractions = 0.7 + 0.05 * (np.log10(values) + 1.8) ** 2
  fitted = sweeps.fit([*values, 0.5], [*fractions, math.inf])
  assert fitted['best_value'] == pytest.approx(10**-1.8, rel=1e-9)
  assert fitted['best_fraction_of_budget'] == pytest.approx(0.7, abs=1e-12)
  assert fitted['trials'] == 4


def test_fit_never_leaves_the_range_measured():
  # Falling, and a parabola that opens downwards.
  falling = sweeps.fit([0.01, 0.1, 1.0], [0.9, 0.6, 0.5])
  assert falling['best_value'] == pytest.approx(1.0)
  bent = sweeps.fit([0.01, 0.1, 1.0], [0.7, 0.9, 0.8])
  assert bent['best_value'] == pytest.approx(0.01)
  assert sweeps.fit([0.01, 0.01, 0.1], [0.9, 0.8, 0.7]) is None
