"""One run with many averagers equals many runs; ratios and the table."""

import pytest

from lab.run import validation
from lab.run.distributed import Context
from lab.run.settings import Settings
from lab.run.trial import TrialRun
from lab.studies import study
from lab.workloads import build_workload, click_dlrm

STEPS = 150


@pytest.fixture
def short(monkeypatch):
  """A run of 150 steps, of which 1 % are two samples."""
  workload = click_dlrm.Workload
  monkeypatch.setattr(workload, 'step_hint', STEPS)
  monkeypatch.setattr(workload, 'eval_every_steps', 50)
  for target in ('validation_target_value', 'test_target_value'):
    monkeypatch.setattr(workload, target, 0.0)
  small = build_workload('click_dlrm').sizes | {'validation': 64, 'test': 64}
  monkeypatch.setattr(workload, 'sizes', small, raising=False)


@pytest.mark.parametrize('scheme', ['lawa', 'ema', 'polynomial'])
def test_each_curve_is_that_of_its_own_submission(scheme, short, tmp_path):
  followed = study.run('click_dlrm', 3, str(tmp_path / 'study'))
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
  expected = [[step, result[metric]] for step, result in alone.eval_results]
  assert followed['curves'][name] == expected
  assert followed['curves'][name] != followed['curves']['raw']
  assert [step for step, _ in expected] == [50, 100, 150]


def result(optimizer='nadamw', **curves):
  return {
    'optimizer': optimizer,
    'workload': 'w',
    'seed': 0,
    'budget_steps': 100,
    'target': 0.5,
    'higher_is_better': False,
    'curves': curves,
  }


def test_rows_give_first_crossings_and_ratios_to_nadamw():
  rows = study.rows_of(
    [
      result(
        raw=[[40, 0.6], [80, 0.5], [100, 0.4]],
        ema=[[40, 0.5], [80, 0.55], [100, 0.3]],
        lawa=[[40, 0.9], [80, 0.8], [100, 0.7]],
      ),
      result('shampoo', raw=[[20, 0.1]]),
    ]
  )
  assert [r['steps_to_target'] for r in rows] == [80, 40, None, 20]
  assert [r['ratio_to_nadamw'] for r in rows] == [1.0, 0.5, None, 0.25]
  assert [r['best_validation'] for r in rows] == [0.4, 0.3, 0.7, 0.1]


def test_ratios_are_unknown_where_nadamw_never_arrives():
  rows = study.rows_of([result(raw=[[40, 0.6]], ema=[[40, 0.5]])])
  assert [r['ratio_to_nadamw'] for r in rows] == [None, None]


def test_medians_count_missing_runs_as_later_than_all():
  def rows(*ratios):
    return [{'ratio_to_nadamw': r} for r in ratios]

  assert study.median_ratio(rows(0.8, None, 0.9)) == 0.9
  assert study.median_ratio(rows(0.8, None, None)) is None


def test_table_has_a_row_for_each_workload_and_one_for_all():
  curves = {name: [[50, 0.4]] for name in study.CANDIDATES}
  curves['raw'] = [[80, 0.4]]
  lines = study.table(study.rows_of([result(**curves)])).splitlines()
  assert lines[2].startswith('| w | 80 (0.80) | nadamw | 1.00 | 0.62 | 0.62 |')
  assert lines[3].startswith('| **median of all runs** |  | nadamw | 1.00 |')
  curves['raw'] = [[80, 0.6]]
  lines = study.table(study.rows_of([result(**curves)])).splitlines()
  assert lines[2].startswith('| w | not reached in 1 of 1 | nadamw | – | – |')
