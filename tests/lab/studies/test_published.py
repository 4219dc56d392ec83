"""The best of five points counts."""

import argparse

from study_runs import curve, lines, result

from lab.studies import published


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
  assert line[:2] == ['w', '0.64 (point 1, 2)']


def test_a_target_that_no_point_reaches_has_a_dash():
  found = result({name: curve(None) for name in published.SHOWN}, point=1)
  (line,) = lines(published.table(published.rows_of([found])))[1:]
  assert set(line[1:]) == {'–'}


def test_every_point_of_the_search_space_is_trained():
  options = argparse.Namespace(workloads=['click_dlrm'], seeds=[0])
  runs = published.trainings(options)
  assert [run.columns['point'] for run in runs] == [1, 2, 3, 4, 5]
  assert len({run.name for run in runs}) == 5
  assert runs[4].point['learning_rate'] == 0.0017486387539278373
