"""GPU-hours and savings, by hand."""

import math

import pandas as pd
import pytest

from lab.core.errors import InputError
from lab.report import savings

INF = math.inf


TIMES = {
  'base': {'x': 3600.0, 'y': 7200.0, 'z': INF},
  'new': {'x': 1800.0, 'y': INF, 'z': 3600.0},
}
# No spread: intervals have no width.
STUDIES = pd.DataFrame(
  {'submission': s, 'workload': w, 'study': f'study_{i}', 'seconds': seconds}
  for s, row in TIMES.items()
  for w, seconds in row.items()
  for i in range(3)
)


@pytest.fixture
def hours():
  """GPU-hours; `base` misses z, `new` misses y."""
  times = TIMES
  medians = pd.DataFrame(
    {'submission': s, 'workload': w, 'seconds': seconds}
    for s, row in times.items()
    for w, seconds in row.items()
  )
  trials = pd.DataFrame(
    {
      'submission': s,
      'workload': w,
      'study': f'study_{i}',
      'gpus': None,
      'total_seconds': total,
    }
    for s in times
    for w in ('x', 'y', 'z')
    for i, total in enumerate((9000.0, 10800.0, 12600.0))
  )
  budgets = {'x': 14400.0, 'y': 14400.0, 'z': 14400.0}
  return savings.gpu_hours(medians, trials, budgets, gpus=4)


def _row(hours, rule, submission='new'):
  table = savings.against(hours, STUDIES, 'base', rule).set_index('submission')
  return table.loc[submission]


def test_a_baseline_without_logs_that_count_is_one_line(hours):
  others = hours[hours['submission'] != 'base']
  with pytest.raises(
    InputError, match=r"Invalid baseline='base'\. Must have lo"
  ):
    savings.against(others, STUDIES, 'base', 'budget')


def test_gpu_hours(hours):
  row = hours.set_index(['submission', 'workload']).loc[('base', 'x')]
  assert row.to_dict() == {
    'gpus': 4,
    'for_budget': 16.0,
    'spent': 12.0,
    'studies': 3,
    'to_target': 4.0,
  }


@pytest.mark.parametrize(
  ('rule', 'workloads', 'own', 'other', 'ratio'),
  [
    # new: 2, 16 and 4; base: 4, 8 and 16.
    ('budget', 3, 22.0, 28.0, 0.5),
    ('spent', 3, 18.0, 24.0, 0.5),
    ('reached', 1, 2.0, 4.0, 0.5),
  ],
)
def test_rules_for_missed_targets(hours, rule, workloads, own, other, ratio):
  row = _row(hours, rule)
  assert row['workloads'] == workloads
  assert (row['gpu_hours'], row['baseline_gpu_hours']) == (own, other)
  assert row['saving'] == 1 - own / other
  assert row['saving_low'] == row['saving_high'] == pytest.approx(row['saving'])
  assert row['fewest_studies'] == 3
  assert row['median_ratio'] == ratio
  assert row['reached'] == 2
  assert _row(hours, rule, 'base')['saving'] == 0.0


def test_devices_of_the_logs_come_first():
  medians = pd.DataFrame(
    {'submission': ['a'], 'workload': ['x'], 'seconds': [3600.0]}
  )
  trials = pd.DataFrame(
    {
      'submission': ['a'],
      'workload': ['x'],
      'study': ['study_0'],
      'gpus': [8],
      'total_seconds': [7200.0],
    }
  )
  (row,) = savings.gpu_hours(medians, trials, {}, gpus=4).to_dict('records')
  assert (row['gpus'], row['to_target'], row['spent']) == (8, 8.0, 16.0)
  assert math.isnan(row['for_budget'])


def test_interval_of_a_saving_holds_the_savings_of_the_studies(hours):
  studies = STUDIES.copy()
  spread = (studies['submission'] == 'new') & (studies['workload'] == 'x')
  studies.loc[spread, 'seconds'] = [1800.0, 900.0, INF]
  row = savings.against(hours, studies, 'base', 'reached')
  row = row.set_index('submission').loc['new']
  # x alone: 1 or, where a draw misses, the 12 hours spent, over 4.
  assert (row['saving_low'], row['saving_high']) == (1 - 12 / 4, 1 - 1 / 4)
