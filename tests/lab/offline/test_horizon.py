"""Rows, fits and the picture of the horizon study."""

import math

import pytest

from lab.studies import horizon, study
from lab.workloads import build_workload, click_dlrm


def result(seed, crossing):
  """A run whose averages reach the target where `crossing(horizon)` says."""
  curves = {}
  for name, knobs in horizon.candidates().items():
    h = knobs.get('averaging_horizon')
    at = 90 if h is None else crossing(h)
    curves[name] = [[s, 1.0 if s < at else 0.1] for s in range(40, 101, 2)]
  return {
    'workload': 'w',
    'seed': seed,
    'budget_steps': 100,
    'target': 0.5,
    'higher_is_better': False,
    'curves': curves,
  }


def bowl(h):
  return 60 + 20 * (math.log10(h) + 1.3) ** 2


def test_rows_have_the_promised_keys_and_ratios():
  rows = horizon.rows_of(result(3, lambda h: 72))
  assert {
    'workload',
    'seed',
    'scheme',
    'horizon',
    'every',
    'steps_to_target',
    'ratio_to_nadamw',
  } <= set(rows[0])
  (one,) = horizon.select(rows, scheme='ema', horizon=0.01)
  assert one['steps_to_target'] == 72
  assert one['ratio_to_nadamw'] == 72 / 90
  assert one['fraction_of_budget'] == 0.72
  assert not one['at_first_evaluation']


def test_a_target_reached_at_the_first_evaluation_is_marked():
  rows = horizon.rows_of(result(0, lambda h: 40))
  assert all(r['at_first_evaluation'] == (r['scheme'] != 'none') for r in rows)


def test_fit_finds_the_bottom_of_a_parabola_in_the_logarithm():
  rows = [{'horizon': h, 'y': bowl(h)} for h in horizon.GRID]
  curve = horizon.fit(rows, 'y')
  assert horizon.fitted_best(curve) == pytest.approx(10**-1.3)
  assert horizon.fit(rows[:2], 'y') is None
  assert horizon.fitted_best(-curve) is None


def test_table_puts_default_and_best_side_by_side():
  rows = [r for s in range(3) for r in horizon.rows_of(result(s, bowl))]
  lines = horizon.table(rows).splitlines()
  default = math.ceil(bowl(0.01) / 2) * 2 / 90
  assert lines[2].startswith(f'| w | lawa | {default:.2f} | 0.69 | 5 % |')
  never = horizon.rows_of(result(0, lambda h: 1000))
  assert '| – | – | – | none inside |' in horizon.table(never)


def test_averages_with_live_statistics_stand_in_a_table_of_their_own():
  # Live statistics cost twenty steps.
  found = result(0, lambda h: 72)
  for name in horizon.candidates(has_statistics=True):
    if name.endswith(' current'):
      found['curves'][name] = [[s, 1.0 if s < 92 else 0.1] for s in (40, 92)]
  rows = horizon.rows_of(found)
  assert len(horizon.by_default(rows)) == 1 + 2 * len(horizon.GRID)
  assert horizon.table(rows) == horizon.table(
    horizon.rows_of(result(0, lambda h: 72))
  )
  ours, live = ([f'{x / 90:.2f}'] * len(horizon.GRID) for x in (72, 92))
  lines = horizon.statistics_table(rows).splitlines()[2:]
  assert [line.strip('| ').split(' | ') for line in lines] == [
    ['w', 'lawa', 'averaged', *ours],
    ['w', 'lawa', 'current', *live],
    ['w', 'ema', 'averaged', *ours],
    ['w', 'ema', 'current', *live],
  ]


def test_only_models_with_running_statistics_have_both():
  numbers = {
    job['workload']: len(job['candidates'])
    for job in horizon.jobs(['click_dlrm', 'glyph_resnet'], [0])
  }
  alone = len(horizon.candidates())
  assert numbers == {'click_dlrm': alone, 'glyph_resnet': 2 * alone - 1}


def test_the_picture_is_drawn_also_where_nothing_was_reached(tmp_path):
  rows = horizon.rows_of(result(0, bowl))
  rows += [
    r | {'workload': 'v'} for r in horizon.rows_of(result(0, lambda h: 1000))
  ]
  horizon.draw(rows, str(tmp_path / 'h.png'))
  assert (tmp_path / 'h.png').stat().st_size > 10_000


def test_windows_stay_short_enough_to_be_kept_beside_each_other():
  for h, every in horizon.GRID.items():
    assert round(h / every) <= 20


def test_a_run_evaluates_from_the_given_fraction_on(monkeypatch, tmp_path):
  workload = click_dlrm.Workload
  monkeypatch.setattr(workload, 'step_hint', 10)
  monkeypatch.setattr(workload, 'eval_every_steps', 2)
  for target in ('validation_target_value', 'test_target_value'):
    monkeypatch.setattr(workload, target, 0.0)
  small = build_workload('click_dlrm').sizes | {'validation': 64}
  monkeypatch.setattr(workload, 'sizes', small, raising=False)
  found = study.run(
    'click_dlrm',
    0,
    str(tmp_path),
    candidates=horizon.candidates(),
    evaluated_from=0.4,
  )
  assert set(found['curves']) == set(horizon.candidates())
  for curve in found['curves'].values():
    assert [step for step, _ in curve] == [4, 6, 8, 10]
