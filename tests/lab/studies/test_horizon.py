"""Rows, fits and the figure of the horizon study."""

import argparse
import math

import pytest
from study_runs import curve, lines, result

from lab.studies import horizon
from lab.studies.parts import frame, tuned
from lab.workloads import click_dlrm


def run(seed, crossing, workload='w'):
  """A run whose averages reach the target where `crossing(horizon)` says."""
  curves = {}
  for name, fields in tuned.CANDIDATES.items():
    h = fields.get('averaging_horizon')
    at = 90 if h is None else crossing(h)
    curves[name] = curve(at, first=40)
  return result(curves, workload, seed)


def bowl(h):
  return 59.5 + 20 * (math.log10(h) + 1.3) ** 2


def never(h):
  return None


def test_rows_have_the_committed_keys_and_ratios():
  rows = horizon.rows_of([run(3, lambda h: 72)])
  assert tuple(rows[0]) == horizon.COLUMNS
  assert tuple(horizon.STUDY.committed('horizon.json')[0]) == horizon.COLUMNS
  assert (rows[0]['scheme'], rows[0]['horizon']) == ('none', None)
  (one,) = [r for r in rows if (r['scheme'], r['horizon']) == ('ema', 0.01)]
  assert one['steps_to_target'] == 72
  assert one['ratio_to_nadamw'] == 72 / 90
  assert one['fraction_of_budget'] == 0.72
  assert not one['at_first_evaluation']


def test_a_target_reached_at_the_first_evaluation_is_marked():
  rows = horizon.rows_of([run(0, lambda h: 40)])
  assert all(r['at_first_evaluation'] == (r['scheme'] != 'none') for r in rows)


def test_fit_finds_the_bottom_of_a_parabola_in_the_logarithm():
  rows = [{'horizon': h, 'ratio_to_nadamw': bowl(h)} for h in horizon.GRID]
  fitted = horizon.fit(frame.read(rows), 'ratio_to_nadamw')
  assert horizon.fitted_best(fitted) == pytest.approx(10**-1.3)
  assert horizon.fit(frame.read(rows[:2]), 'ratio_to_nadamw') is None
  assert horizon.fitted_best(-fitted) is None
  assert horizon.fitted_best(None) is None


def test_table_puts_default_and_best_side_by_side():
  rows = horizon.rows_of([run(seed, bowl) for seed in range(3)])
  default = math.ceil(bowl(0.01) / 2) * 2 / 90
  assert lines(horizon.table(rows))[1][:5] == [
    *('w', 'lawa', f'{default:.2f}', '0.67', '5 %')
  ]
  table = horizon.table(horizon.rows_of([run(0, never)]))
  assert lines(table)[1][2:] == ['–', '–', '–', 'none inside']


def test_averages_with_live_statistics_have_a_table_of_their_own():
  # Live statistics cost twenty steps.
  found = run(0, lambda h: 72)
  for name, fields in tuned.CANDIDATES.items():
    if 'averaging_horizon' in fields:
      found['curves'][f'{name} current'] = curve(92, first=40)
  rows = horizon.rows_of([found])
  alone = horizon.rows_of([run(0, lambda h: 72)])
  assert horizon.table(rows) == horizon.table(alone)
  ours, live = ([f'{x / 90:.2f}'] * len(horizon.GRID) for x in (72, 92))
  assert lines(horizon.statistics_table(rows))[1:] == [
    ['w', 'lawa', 'averaged', *ours],
    ['w', 'lawa', 'current', *live],
    ['w', 'ema', 'averaged', *ours],
    ['w', 'ema', 'current', *live],
  ]
  assert len(lines(horizon.statistics_table(alone))) == 1


def trainings(*workloads):
  return horizon.trainings(
    argparse.Namespace(workloads=list(workloads), seeds=[0])
  )


def test_only_models_with_running_statistics_have_both():
  numbers = [
    len(run.follows['candidates'])
    for run in trainings('click_dlrm', 'glyph_resnet')
  ]
  assert numbers == [18, 18 + 2 * 7]


def test_the_figure_is_drawn_also_where_nothing_was_reached(tmp_path):
  rows = horizon.rows_of([run(0, bowl), run(0, never, 'v')])
  horizon.draw(rows, tmp_path / 'h.png')
  assert (tmp_path / 'h.png').stat().st_size > 10_000


def test_windows_stay_short_enough_to_be_kept_beside_each_other():
  for h, every in horizon.GRID.items():
    assert round(h / every) <= 20


def test_a_run_evaluates_from_the_given_fraction_on(shrink, tmp_path):
  shrink(click_dlrm.Workload, steps=10, eval_every_steps=2, target=0.0, size=64)
  (one,) = trainings('click_dlrm')
  found = one.execute(str(tmp_path))
  assert set(found['curves']) == set(tuned.CANDIDATES)
  for values in found['curves'].values():
    assert [step for step, *_ in values] == [4, 6, 8, 10]
