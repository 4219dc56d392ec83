"""Times relative to a baseline's, with paired intervals."""

import math

import pandas as pd
import pytest

from lab.report import relative

INF = math.inf


def _rows(times, names=('study_0', 'study_1', 'study_2')):
  """Ratios of a submission `new` to `base` on workloads with given times."""
  studies = pd.DataFrame(
    {
      'submission': s,
      'workload': w,
      'study': name if s == 'base' else names[i],
      'seconds': t,
      'steps': 10 * t,
    }
    for (s, w), values in times.items()
    for i, (name, t) in enumerate(
      zip(('study_0', 'study_1', 'study_2'), values, strict=True)
    )
  )
  medians = studies.groupby(['submission', 'workload'])[['seconds', 'steps']]
  medians = medians.median().reset_index()
  medians['studies'] = 3
  return relative.by_workload(medians, studies, 'base')


def test_only_workloads_that_both_reach():
  rows = _rows(
    {
      ('base', 'x'): [10.0, 10.0, 20.0],
      ('base', 'y'): [INF, INF, 5.0],
      ('new', 'x'): [9.0, 9.0, INF],
      ('new', 'y'): [5.0, 5.0, 5.0],
      ('new', 'z'): [5.0, 5.0, 5.0],
    }
  )
  (row,) = rows
  assert (row['workload'], row['studies']) == ('x', 3)
  assert row['seconds_ratio'] == row['steps_ratio'] == 0.9
  # Draws of the third study alone: missed.
  assert row['seconds_ratio_high'] == INF


def test_studies_of_the_same_names_are_paired():
  times = {
    ('base', 'x'): [10.0, 20.0, 40.0],
    ('new', 'x'): [9.0, 18.0, 36.0],
  }
  (row,) = _rows(times)
  # The same studies are drawn for both, so that the ratio never changes.
  assert row['seconds_ratio_low'] == row['seconds_ratio_high'] == 0.9
  (apart,) = _rows(times, names=('study_3', 'study_4', 'study_5'))
  assert apart['seconds_ratio_low'] == pytest.approx(9 / 40)
  assert apart['seconds_ratio_high'] == pytest.approx(36 / 10)
