"""One run with many averages equals many runs; the table of ratios."""

import argparse

import pytest
from study_runs import curve, lines, result

from lab.run import validation
from lab.run.distributed import Context
from lab.run.settings import Settings
from lab.run.trial import TrialRun
from lab.studies import steps
from lab.workloads import build_workload, click_dlrm

# 1 % of T is more than one sample.
STEPS = 300


@pytest.fixture
def short(shrink):
  """A run with three evaluations."""
  shrink(
    click_dlrm.Workload, steps=STEPS, eval_every_steps=100, target=0.0, size=64
  )


def options(**changes):
  """A command line's options: one run of NadamW."""
  values = {'optimizers': ['nadamw'], 'workloads': ['click_dlrm'], 'seeds': [3]}
  return argparse.Namespace(**(values | changes))


@pytest.mark.parametrize('scheme', ['lawa', 'ema', 'polynomial'])
def test_each_curve_is_that_of_its_own_submission(scheme, short, tmp_path):
  (run,) = steps.trainings(options())
  followed = run.execute(str(tmp_path / 'study'))
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


def test_an_average_costs_seconds_beside_those_of_training(short, tmp_path):
  (run,) = steps.trainings(options())
  found = run.execute(str(tmp_path))
  own = found['averaging_seconds']
  assert own['raw'] < own['lawa 10 %']
  seconds = {name: curve[-1][1] for name, curve in found['curves'].items()}
  assert len(set(seconds.values())) == len(seconds)
  for name, total in seconds.items():
    billed = seconds['raw'] - own['raw']
    # An average's clock runs on for the last swap only.
    assert billed < total <= billed + own[name] + 1e-9


def test_shampoo_trains_at_nadamws_point_in_its_own_terms():
  nadamw, shampoo = steps.trainings(options(optimizers=['nadamw', 'shampoo']))
  assert shampoo.point['one_minus_beta2'] == 1 - nadamw.point['beta2']
  assert shampoo.point['learning_rate'] == nadamw.point['learning_rate']
  assert shampoo.name != nadamw.name


def runs(raw, others):
  curves = {name: curve(others) for name in steps.CANDIDATES}
  return [
    result(curves | {'raw': curve(raw)}, optimizer='nadamw'),
    result({'raw': curve(64)}, optimizer='shampoo'),
  ]


def test_table_has_a_line_for_each_workload_and_one_for_all():
  found = lines(steps.table(steps.rows_of(runs(80, 50))))
  assert found[1][:5] == ['w', '80 (0.80)', 'nadamw', '1.00', '0.62']
  assert found[2][:4] == ['**median of all runs**', '', 'nadamw', '1.00']
  assert found[3] == ['w', '80 (0.80)', 'shampoo', '0.80', *6 * '–']
  table = steps.table(steps.rows_of(runs(None, 50)))
  assert lines(table)[1][1:4] == [
    'not reached in 1 of 1',
    'nadamw',
    '–',
  ]


def test_the_committed_rows_are_readable(tmp_path):
  rows = steps.STUDY.committed('study.json')
  assert tuple(rows[0]) == steps.COLUMNS
  assert len(lines(steps.table(rows))) == 11
  steps.draw(rows, tmp_path / 'ratios.png')
  assert (tmp_path / 'ratios.png').stat().st_size > 10_000
