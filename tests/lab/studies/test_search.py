"""The search: its points, its rule and its winners."""

import dataclasses
import math

import numpy as np
import pytest
from study_runs import POINT, trial

from lab.core.errors import InputError
from lab.studies import tune
from lab.studies.parts import (
  execution,
  finals,
  search,
  training,
  tuned,
)
from lab.studies.parts.methods import METHODS
from lab.workloads import denoise_unet
from weightavg.pytorch.shampoo import DistributedShampoo


def test_points_fill_the_ranges_and_more_begin_with_the_same():
  few, many = (
    search.points(search.RANGES, 8, 0),
    search.points(search.RANGES, 64, 0),
  )
  assert many[:8] == few
  assert search.points(search.RANGES, 8, 1) != few
  for name, span in search.RANGES.items():
    values = np.array([point[name] for point in many])
    if 'min' in span:
      assert span['min'] <= values.min()
      assert values.max() <= span['max']
      # Each quarter of the logarithmic range has about a quarter of them.
      place = np.log(values / span['min']) / np.log(span['max'] / span['min'])
      assert np.histogram(place, 4, (0, 1))[0].min() >= 12
    else:
      assert set(values) == set(span['feasible_points'])


def test_a_workload_without_a_regularizer_does_not_search_over_it(
  monkeypatch, tmp_path
):
  seen = []

  def run_all(trainings, directory, jobs):
    seen.extend(run.point for run in trainings)
    return [trial(raw=1.0) | {'seed': 0, 'budget_steps': 9, 'rungs': []}] * len(
      trainings
    )

  monkeypatch.setattr(execution, 'run_all', run_all)
  monkeypatch.setattr(training, 'ROOT', tmp_path)
  assert denoise_unet.Workload.regularizers == ('dropout_rate',)
  tune.tune('denoise_unet', 'shampoo', search.RANGES, 2, tmp_path, 1)
  full = search.points(search.RANGES, 2, tune.SEED)
  assert seen[:2] == [
    {k: v for k, v in point.items() if k != 'label_smoothing'} for point in full
  ]


def ranges(**changes):
  return search.RANGES | changes


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (None, 'Must be an object with the keys learning_rate'),
    ([], 'Must be an object with the keys'),
    ({'learning_rate': search.RANGES['learning_rate']}, 'with the keys'),
    (ranges(momentum={}), 'with the keys'),
    (
      ranges(weight_decay={'min': 1.0, 'max': 0.1, 'scaling': 'log'}),
      "'weight_decay' in here: min=1.0, max=0.1",
    ),
    (
      ranges(weight_decay={'min': 0.1, 'max': 0.1, 'scaling': 'log'}),
      'min=0.1, max=0.1. Must be numbers with min < max',
    ),
    (ranges(dropout_rate={'feasible_points': []}), 'at least one'),
  ],
)
def test_ranges_that_are_no_ranges_are_refused(given, message):
  with pytest.raises(InputError, match=message):
    search.check_ranges(given, 'here')
  search.check_ranges(search.RANGES, 'here')


def test_nan_is_worse_than_any_value():
  assert search.is_better(1.0, 2.0, higher_is_better=False)
  assert search.is_better(2.0, 1.0, higher_is_better=True)
  assert not search.is_better(1.0, 1.0, higher_is_better=True)
  assert search.is_better(9.0, math.nan, higher_is_better=False)
  assert not search.is_better(math.nan, 9.0, higher_is_better=False)
  assert not search.is_better(math.nan, math.nan, higher_is_better=False)


def test_limits_are_medians_of_the_trials_that_got_there():
  trials = [{'rungs': r} for r in ([3.0, 1.0], [5.0], [4.0, 2.0], [math.nan])]
  assert search.limits(trials, higher_is_better=False) == [4.5, 1.5]
  assert search.limits([], higher_is_better=False) == [None, None]
  # Where half have diverged there is no limit.
  trials = [{'rungs': r} for r in ([3.0, 1.0], [math.nan])]
  assert search.limits(trials, higher_is_better=False)[0] is None
  assert search.limits(trials[:1], higher_is_better=True) == [3.0, 1.0]


@pytest.mark.parametrize(
  ('limits', 'stopped', 'last'),
  [
    ([None, None], None, 12),
    # A loss cannot be below 0, and is below 9.
    ([0.0, None], 4, 4),
    ([9.0, 0.0], 8, 8),
    ([9.0, 9.0], None, 12),
  ],
)
def test_a_trial_ends_at_a_rung_where_it_is_worse_than_the_limit(
  limits, stopped, last, short, tmp_path
):
  run = tune.training('click_dlrm', 'nadamw', POINT, 0, limits)
  found = run.execute(str(tmp_path))
  assert found['budget_steps'] == 12
  assert found['stopped'] == stopped
  assert found['curves']['raw'][-1][0] == last
  assert set(found['curves']) == set(tuned.CANDIDATES)
  looks = [step for step, *_ in found['curves']['raw']]
  assert looks == list(range(4, last + 1, 2))
  values = [c[2] for curve in found['curves'].values() for c in curve]
  assert found['rungs'][-1] >= min(values)
  assert len(found['rungs']) == (1 if stopped == 4 else 2)


def test_a_trial_that_diverges_ends_at_the_first_rung(short, tmp_path):
  point = POINT | {'learning_rate': 1e30, 'warmup_factor': 0.0}
  found = tune.training('click_dlrm', 'nadamw', point, 0).execute(str(tmp_path))
  assert found['stopped'] == 4
  assert math.isnan(found['rungs'][0])
  assert set(finals.best_of(found).values()) == {None}


def test_a_trial_that_its_optimizer_ends_has_diverged(short, tmp_path):
  """Shampoo raises an error where NadamW goes on with NaN."""
  point = POINT | {'learning_rate': 1e30, 'warmup_factor': 0.0}
  run = tune.training('click_dlrm', 'shampoo', point, 0)
  found = execution.execute(run, str(tmp_path))
  assert 0 < found['stopped'] < 4
  assert len(found['rungs']) == 1
  assert math.isnan(found['rungs'][0])
  assert found['curves'] == {name: [] for name in tuned.CANDIDATES}
  assert set(finals.best_of(found).values()) == {None}
  assert finals.row_of(0, POINT, found)['steps'] == []
  assert finals.finalists([found]) == []
  assert search.limits([found], higher_is_better=False) == [None, None]
  assert execution.kept(run, str(tmp_path))['stopped'] == found['stopped']


def test_a_trial_that_its_optimizer_ends_late_keeps_its_values(
  short, tmp_path, monkeypatch
):
  step, steps = DistributedShampoo.step, []

  def refuses(self, closure=None):
    steps.append(0)
    if len(steps) == 9:
      raise FloatingPointError('Invalid gradient.')
    return step(self, closure)

  monkeypatch.setattr(DistributedShampoo, 'step', refuses)
  run = tune.training('click_dlrm', 'shampoo', POINT, 0)
  found = run.execute(str(tmp_path))
  assert found['stopped'] == 9
  assert len(found['rungs']) == 2
  assert np.isfinite(found['rungs']).all()
  assert [look for look, *_ in found['curves']['raw']] == [4, 6, 8]


@pytest.mark.parametrize(
  'method', [name for name in METHODS if METHODS[name].shows_average]
)
def test_the_result_of_a_trial_is_what_its_submission_shows(
  method, short, tmp_path
):
  (point,) = search.points(METHODS[method].ranges(search.RANGES), 1, 0)
  run = tune.training('click_dlrm', method, point, 0)
  found = run.execute(str(tmp_path))
  assert list(found['curves']) == ['shown']
  alone = dataclasses.replace(run, follower=Alone, follows={})
  expected = dict(alone.execute(str(tmp_path / 'alone'))['curves']['alone'])
  for step, _, value in found['curves']['shown']:
    assert expected[step] == value
  early = [v for step, _, v in found['curves']['shown'] if step <= 8]
  assert found['rungs'][-1] == min(early)


class Alone(training.Follower):
  """The run's own evaluations."""

  def __init__(self):
    self.curve = []

  def at_evaluation(self, run, metrics):
    self.curve.append((run.state.global_step, metrics['validation/loss']))

  def findings(self):
    return {'curves': {'alone': self.curve}}


def test_finalists_are_the_best_four_of_each_kind():
  trials = [trial(raw=float(i), ema=10.0 - i) for i in range(10)]
  assert finals.finalists(trials) == [0, 1, 2, 3, 6, 7, 8, 9]
  trials[0] |= {'stopped': 4}
  assert finals.finalists(trials) == [1, 2, 3, 4, 6, 7, 8, 9]
  up = [trial(higher=True, raw=float(i)) for i in range(10)]
  assert finals.finalists(up) == [6, 7, 8, 9]


def test_the_best_mean_over_seeds_wins_and_a_diverged_seed_loses():
  one = [trial(raw=1.0, ema=5.0), trial(raw=3.0, ema=5.0)]
  other = [trial(raw=0.0), trial(raw=5.0, ema=1.0)]
  found = finals.winners([(4, {'a': 1}, one), (7, {'a': 2}, other)])
  assert found['raw']['trial'] == 4
  assert found['raw']['mean'] == 2.0
  assert found['raw']['point'] == {'a': 1}
  # The first of equal averages.
  assert found['ema']['average'] == 'ema 0.5 %'
  assert found['ema']['trial'] == 4
  assert 'lawa' not in found
