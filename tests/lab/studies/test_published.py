"""The best of five points counts."""

import argparse
import math

import pytest
from study_runs import curve, lines, result

from lab.studies import published, steps


def test_the_fastest_point_of_a_seed_counts():
  # Point 2 is the fastest on seeds 0 and 1, point 1 on seed 2.
  arrivals = {0: (80, 60), 1: (90, 70), 2: (64, None)}
  results = [
    result(
      {name: curve(at) for name in published.SHOWN}, seed=seed, point=point
    )
    for seed, steps in arrivals.items()
    for point, at in enumerate(steps, 1)
  ]
  rows = published.rows_of(results)
  assert tuple(rows[0]) == published.COLUMNS
  (line,) = lines(published.table(rows))[1:]
  assert line[:3] == ['w', 'best of five', '0.64 (point 1, 2)']


def test_a_target_that_no_point_reaches_has_a_dash():
  found = result({name: curve(None) for name in published.SHOWN}, point=1)
  (line,) = lines(published.table(published.rows_of([found])))[1:]
  assert set(line[2:-2]) == {'–'}


def of_points(metrics, **columns):
  """Runs that end at a metric, by number of the point; three seeds each."""
  return [
    result(
      {name: [[100, 1.0, value]] for name in (*published.SHOWN, 'ema 20 %')},
      seed=seed,
      **({'point': point} if point else {'optimizer': 'nadamw'}),
      **columns,
    )
    for point, values in metrics.items()
    for seed, value in enumerate(values)
  ]


@pytest.mark.parametrize(
  ('higher', 'best'), [(False, '0.4 (point 2)'), (True, '0.8 (point 1)')]
)
def test_the_tuned_point_stands_below_the_best_of_five(higher, best):
  """Its run has more averages than those of the table, and no number."""
  nan = math.nan
  runs = of_points(
    {1: (0.9, 0.8, 0.7), 2: (0.4, 0.6, 0.3), 3: (nan, 0.0, nan), 0: (0.5,) * 3},
    higher_is_better=higher,
  )
  rows = published.rows_of(runs)
  assert {row['candidate'] for row in rows} == {*published.SHOWN}
  five, tuned = lines(published.table(rows))[1:]
  assert (five[1], five[-2]) == ('best of five', best)
  assert (tuned[1], tuned[-2]) == ('tuned', '0.5')
  assert tuned[-1] == ('≥ 0.5' if higher else '≤ 0.5')
  assert tuned[2] == '1.00'


def test_every_point_of_the_search_space_is_trained():
  options = argparse.Namespace(workloads=['click_dlrm'], seeds=[0])
  runs = published.trainings(options)
  *of_five, tuned = runs
  assert [run.columns['point'] for run in of_five] == [1, 2, 3, 4, 5]
  assert len({run.name for run in runs}) == 6
  assert of_five[4].point['learning_rate'] == 0.0017486387539278373
  # The run of `steps`, so that it is not trained twice.
  assert tuned.name == steps.runs('click_dlrm', 'nadamw', 0)[0].name
