"""Time to target of trials, studies and submissions."""

import math

import pytest

from lab.report import targets, time_to_target
from lab.report.log_files import Evaluation, Trial

INF = math.inf
GOALS = {
  'down': targets.Goal(metric='loss', target=0.5, step_hint=100),
  'up': targets.Goal(metric='bleu', target=30.0),
}


def _trial(evaluations, submission='a', workload='down', study=0, trial=1):
  return Trial(
    submission=submission,
    study=f'study_{study}',
    workload=workload,
    framework='jax',
    trial=trial,
    evaluations=tuple(
      Evaluation(step=s, seconds=t, value=v) for s, t, v in evaluations
    ),
  )


def _medians(*trials):
  rows = time_to_target.of_trials(trials, GOALS)
  studies = time_to_target.of_studies(rows, GOALS)
  return time_to_target.of_submissions(studies, GOALS).set_index(
    ['submission', 'workload']
  )


@pytest.mark.parametrize(
  ('workload', 'values', 'seconds'),
  [
    ('down', [0.9, 0.5, 0.1], 20.0),
    ('down', [0.4, 0.6, 0.6], 10.0),
    ('down', [math.nan, 0.6, 0.2], 30.0),
    ('down', [-math.inf, 0.6, 0.2], 10.0),
    ('down', [0.9, 0.8, 0.51], INF),
    ('up', [29.0, 30.0, 31.0], 20.0),
    ('up', [29.0, math.nan, 29.9], INF),
  ],
)
def test_first_row_as_good_as_the_target(workload, values, seconds):
  rows = [(i + 1, 10.0 * (i + 1), v) for i, v in enumerate(values)]
  table = _medians(_trial(rows, workload=workload))
  assert table.loc[('a', workload), 'seconds'] == seconds


def test_resumed_run_counts_from_its_first_row_at_the_target():
  # The benchmark's scoring reads rows as they come.
  rows = [(10, 5.0, 0.9), (20, 9.0, 0.5), (20, 9.5, 0.6), (30, 14.0, 0.4)]
  table = _medians(_trial(rows))
  assert table.loc[('a', 'down'), 'seconds'] == 9.0
  assert table.loc[('a', 'down'), 'steps'] == 20


def test_fastest_trial_of_a_study_is_the_one_with_fewest_seconds():
  # Trial 2 needs fewer steps, but more time.
  slow = _trial([(10, 50.0, 0.1)], trial=2)
  fast = _trial([(20, 40.0, 0.1)], trial=1)
  missed = _trial([(5, 1.0, 0.9)], trial=3)
  studies = time_to_target.of_studies(
    time_to_target.of_trials([slow, fast, missed], GOALS), GOALS
  )
  (row,) = studies.to_dict('records')
  assert (row['fastest_trial'], row['seconds'], row['steps']) == (1, 40.0, 20)
  assert row['trials'] == 3


def test_fastest_trial_may_be_the_one_with_fewest_evaluations():
  # As the published scoring: the second row of trial 1 is later than the third
  # of trial 2. Trials 1 and 3 reach the target at the same row.
  trials = [
    _trial([(1, 10.0, 0.9), (2, 30.0, 0.4)], trial=1),
    _trial([(1, 5.0, 0.9), (2, 10.0, 0.9), (3, 20.0, 0.4)], trial=2),
    _trial([(1, 10.0, math.nan), (2, 29.0, 0.4)], trial=3),
    _trial([(1, 1.0, 0.9)], trial=4),
  ]
  rows = time_to_target.of_trials(trials, GOALS)
  assert rows['evaluations'].tolist() == [2, 3, 2, INF]
  fastest = {
    rule: time_to_target.of_studies(rows, GOALS, rule)['seconds'].item()
    for rule in time_to_target.FASTEST
  }
  assert fastest == {'seconds': 20.0, 'evaluations': 29.0}


def test_study_that_misses_is_shown_by_its_best_trial():
  trials = [
    _trial([(5, 1.0, 0.8)], trial=1),
    _trial([(5, 1.0, 0.6)], trial=2),
    _trial([(5, 1.0, 0.7)], trial=3),
    _trial([(5, 1.0, 20.0)], trial=1, workload='up'),
    _trial([(5, 1.0, 21.0)], trial=2, workload='up'),
    _trial([(5, 1.0, math.nan)], trial=3, workload='up'),
  ]
  rows = time_to_target.of_trials(trials, GOALS)
  studies = time_to_target.of_studies(rows, GOALS).set_index('workload')
  assert studies['fastest_trial'].to_dict() == {'down': 2, 'up': 2}


@pytest.mark.parametrize(
  ('seconds', 'median'),
  [
    ([30.0, 10.0, 20.0], 20.0),
    ([30.0, INF, 10.0], 30.0),
    ([INF, INF, 10.0], INF),
    ([10.0, 20.0], 15.0),
    ([10.0, INF], INF),
    ([7.0], 7.0),
  ],
)
def test_median_over_studies(seconds, median):
  trials = [
    _trial([(i + 1, t if t < INF else 1.0, 0.1 if t < INF else 1.0)], study=i)
    for i, t in enumerate(seconds)
  ]
  table = _medians(*trials)
  assert table.loc[('a', 'down'), 'seconds'] == median
  assert table.loc[('a', 'down'), 'studies'] == len(seconds)
  assert table.loc[('a', 'down'), 'reached'] == sum(t < INF for t in seconds)


def test_fraction_of_budget_is_the_median_of_steps_over_the_step_hint():
  trials = [_trial([(s, s, 0.1)], study=i) for i, s in enumerate((90, 60, 70))]
  table = _medians(*trials, _trial([(5, 5.0, 31.0)], workload='up'))
  assert table.loc[('a', 'down'), 'fraction_of_budget'] == 0.7
  assert math.isnan(table.loc[('a', 'up'), 'fraction_of_budget'])


def test_step_time_is_a_median_of_periods():
  # The first period holds compilation; a resumed run repeats a step.
  rows = [(1, 60.0), (11, 65.0), (21, 70.0), (21, 71.0), (31, 176.0)]
  evaluations = [Evaluation(step=s, seconds=t, value=1.0) for s, t in rows]
  assert time_to_target.step_time(evaluations) == 0.5
  assert time_to_target.step_time(evaluations[:1]) is None


def test_best_value_is_the_median_over_studies_of_the_best_trial():
  trials = [
    _trial([(1, 1.0, v)], study=study, trial=trial)
    for study, values in enumerate([(0.9, 0.7), (0.6, 0.8), (0.5, math.nan)])
    for trial, v in enumerate(values)
  ]
  rows = time_to_target.of_trials(trials, GOALS)
  (best,) = time_to_target.best_values(rows, GOALS).to_dict('records')
  assert (best['best'], best['best_min'], best['best_max']) == (0.6, 0.5, 0.7)
  assert (best['studies'], best['trials']) == (3, 6)
