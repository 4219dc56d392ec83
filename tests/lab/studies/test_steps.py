"""One run with many averages equals many runs; the table of ratios."""

import argparse

import pytest
from small_workloads import shrinker
from study_runs import curve, lines, result

from lab.run import validation
from lab.run.distributed import Context
from lab.run.settings import Settings
from lab.run.trial import TrialRun
from lab.studies import steps
from lab.studies.parts import tuned
from lab.workloads import build_workload, click_dlrm

# 1 % of T is more than one sample.
STEPS = 300


def _shorten(shrink):
  shrink(
    click_dlrm.Workload, steps=STEPS, eval_every_steps=100, target=0.0, size=64
  )


@pytest.fixture
def short(shrink):
  """A run has three evaluations."""
  _shorten(shrink)


@pytest.fixture(scope='module')
def followed(tmp_path_factory):
  """The result of one short run that all averages follow."""
  with pytest.MonkeyPatch.context() as patch:
    _shorten(shrinker(patch))
    run = steps.trainings(options())[0]
    return run.execute(str(tmp_path_factory.mktemp('study')))


def options(**changes):
  """A command line's options: one run of NadamW."""
  values = {'optimizers': ['nadamw'], 'workloads': ['click_dlrm'], 'seeds': [3]}
  return argparse.Namespace(**(values | changes))


@pytest.mark.parametrize('scheme', ['lawa', 'ema', 'polynomial'])
@pytest.mark.usefixtures('short')
def test_each_curve_is_that_of_its_own_submission(scheme, followed, tmp_path):
  name = {'polynomial': 'polynomial 4'}.get(scheme, f'{scheme} 1 %')
  settings = Settings(
    workload='click_dlrm',
    submission_path=f'submissions/nadamw_{scheme}/submission.py',
    tuning_search_space=build_workload('click_dlrm').tuned_search_space,
    experiment_dir=str(tmp_path),
    experiment_name='alone',
    rng_seed=3,
    run_to_budget=True,
    save_checkpoints=False,
  )
  (trial,) = validation.prepare(settings, Context(), drawn_seed=0)
  (tmp_path / 'alone' / 'click_dlrm_pytorch' / 'trial_1').mkdir(parents=True)
  alone = TrialRun(trial, {}).run()
  metric = f'validation/{trial.workload.target_metric_name}'
  expected = [[step, metrics[metric]] for step, metrics in alone.eval_results]
  curves = {
    name: [[step, value] for step, _, value in curve]
    for name, curve in followed['curves'].items()
  }
  assert curves[name] == expected
  assert curves[name] != curves['raw']
  assert [step for step, _ in expected] == [100, 200, 300]


def test_an_average_costs_seconds_beside_those_of_training(followed):
  own = followed['averaging_seconds']
  assert own['raw'] < own['lawa 10 %']
  seconds = {name: curve[-1][1] for name, curve in followed['curves'].items()}
  assert len(set(seconds.values())) == len(seconds)
  for name, total in seconds.items():
    billed = seconds['raw'] - own['raw']
    # An average's clock runs on for the last swap only.
    assert billed < total <= billed + own[name] + 1e-9


def runs(raw, others, tuned_for='raw'):
  curves = {name: curve(others) for name in tuned.CANDIDATES}
  return [
    result(
      curves | {'raw': curve(raw)}, optimizer='nadamw', tuned_for=tuned_for
    ),
    result({'raw': curve(64)}, optimizer='shampoo', tuned_for='raw'),
  ]


def test_table_has_a_line_for_each_workload_and_one_for_all():
  found = lines(steps.table(steps.rows_of(runs(80, 50))))
  assert found[1][:5] == ['w', '80 (0.80)', 'nadamw', '1.00', '0.62']
  assert found[2][:4] == ['**median of all runs**', '', 'nadamw', '1.00']
  assert found[3] == ['w', '80 (0.80)', 'shampoo', '0.80', *8 * '–']
  table = steps.table(steps.rows_of(runs(None, 50)))
  assert lines(table)[1][1:4] == [
    'not reached in 1 of 1',
    'nadamw',
    '–',
  ]


def test_a_run_has_rows_for_each_kind_whose_point_it_has():
  rows = steps.rows_of(runs(80, 50, 'raw, ema'))
  nadamw = [row for row in rows if row['optimizer'] == 'nadamw']
  for kind, number in (('raw', 18), ('ema', 7)):
    own = [row for row in nadamw if row['tuned_for'] == kind]
    assert len(own) == number
  assert {r['candidate'].split()[0] for r in own} == {'ema'}
  assert {r['ratio_to_nadamw'] for r in own} == {50 / 80}


def test_methods_are_compared_at_their_own_points():
  at_raw = runs(80, 70)[0]
  # The best of the same length everywhere is at 60.
  at_raw['curves']['lawa 5 %'] = curve(60)
  own = result(
    {'ema 3 %': curve(50), 'ema 1 %': curve(52), 'raw': curve(None)},
    optimizer='nadamw',
    tuned_for='ema',
  )
  rows = steps.rows_of([at_raw, own])
  assert steps.best_horizons(rows)['nadamw', 'lawa'] == 'lawa 5 %'
  header, line = lines(steps.equal_budget(rows))
  found = dict(zip(header, line, strict=True))
  assert found['raw'] == '1.00'
  assert found['lawa 5 %'] == '0.75'
  # LAWA has no point of its own.
  assert found['lawa, best'] == '0.75 (lawa 5 %)'
  # 70 / 80 at NadamW's point, 50 / 80 at its own.
  assert found['ema 0.5 %'] == '0.88'
  assert found['ema, best'] == '0.62 (ema 3 %)'


def test_of_equal_averages_the_one_with_the_shortest_horizon_is_best():
  at_raw = runs(80, 70)[0]
  # By name, 10 % would be before 3 %.
  for name in ('ema 3 %', 'ema 10 %', 'polynomial 9', 'polynomial 19'):
    at_raw['curves'][name] = curve(60)
  rows = steps.rows_of([at_raw])
  best = steps.best_horizons(rows)
  assert best['nadamw', 'ema'] == 'ema 3 %'
  assert best['nadamw', 'polynomial'] == 'polynomial 9'
  assert best['nadamw', 'lawa'] == 'lawa 0.5 %'
  header, line = lines(steps.equal_budget(rows))
  found = dict(zip(header, line, strict=True))
  assert found['ema, best'] == '0.75 (ema 3 %)'


def test_gains_of_the_final_metric_are_in_units_of_the_seeds_range():
  results = []
  for seed, raw in enumerate((0.40, 0.44, 0.50)):
    curves = {
      'raw': [[100, 1.0, raw]],
      'ema 1 %': [[100, 1.0, raw - 0.05]],
      'lawa 1 %': [[100, 1.0, raw + 0.02]],
    }
    results.append(
      result(curves, seed=seed, optimizer='nadamw', tuned_for='raw')
    )
  header, line = lines(steps.final_metric(steps.rows_of(results)))
  found = dict(zip(header, line, strict=True))
  assert found['NadamW, median (range)'] == '0.44 (range 0.1)'
  assert (found['raw'], found['ema 1 %']) == ('+0.00', '+0.50')
  assert found['lawa 1 %'] == '-0.20'


def test_levels_are_those_of_the_raw_weights_of_the_run():
  falling = [[s, 1.0, 1.0 - s / 100] for s in range(10, 101, 10)]
  ahead = [[s, 1.0, 1.0 - 1.25 * s / 100] for s in range(10, 101, 10)]
  run = result(
    {'raw': falling, 'ema 1 %': ahead, 'ema 1 % current': falling},
    optimizer='nadamw',
    tuned_for='raw, ema',
  )
  rows = steps.levels_of([run, run | {'tuned_for': 'lawa'}])
  assert [row['fraction'] for row in rows] == [0.5, 0.6, 0.7, 0.8, 0.9]
  assert {row['candidate'] for row in rows} == {'ema 1 %'}
  assert [row['ratio'] for row in rows] == pytest.approx(5 * [0.8])
  table = lines(steps.levels_table(rows))
  assert ['w', 'nadamw', 'ema 1 %', *5 * ['0.80']] in table


def test_the_committed_rows_are_readable(tmp_path):
  rows = steps.STUDY.committed('study.json')
  assert tuple(rows[0]) == steps.COLUMNS
  pairs = {(row['optimizer'], row['workload']) for row in rows}
  # A header, a line for each pair, and one for each optimizer.
  assert len(lines(steps.table(rows))) == 1 + len(pairs) + 2
  assert len(lines(steps.equal_budget(rows))) == 1 + len(pairs)
  steps.draw(rows, tmp_path / 'ratios.png')
  assert (tmp_path / 'ratios.png').stat().st_size > 10_000
