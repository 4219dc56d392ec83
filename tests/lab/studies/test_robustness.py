"""A wrong learning rate and a wrong T: what is run, and what it costs."""

import argparse
import pathlib

import pytest
from study_runs import cells, curve, result

from lab.studies import primal, robustness, steps
from lab.studies.parts import (
  execution,
  kept_rows,
  robustness_tables,
  study,
  training,
  tuned,
)
from lab.workloads import click_dlrm

METHODS = ['nadamw_primal', 'nadamw_schedule_free']


@pytest.fixture(autouse=True)
def no_search(monkeypatch, tmp_path):
  """No search is committed."""
  monkeypatch.setattr(tuned, 'ROOT', tmp_path)


def options(**changes):
  values = {
    'methods': METHODS,
    'workloads': ['click_dlrm'],
    'seeds': [3],
    'changes': robustness.CHANGES,
    'keep_baseline': False,
  }
  return argparse.Namespace(**(values | changes))


def test_one_thing_differs_from_the_runs_of_primal():
  given = options()
  base = {run.submission: run for run in primal.trainings(given)}
  runs = robustness.trainings(given)
  assert [r.name for r in runs[:3]] == [r.name for r in base.values()]
  others = runs[3:]
  # Four rates each; 2 T, and, where T is known, T/2 and 2 T told.
  assert len(others) == (4 + 3) + (4 + 1)
  assert len({run.name for run in runs}) == len(runs)
  for run in others:
    own = base[run.submission]
    rate = run.point['learning_rate'] / own.point['learning_rate']
    assert rate == pytest.approx(run.columns['rate'])
    changed = {**run.point, 'learning_rate': own.point['learning_rate']}
    assert changed == own.point
    assert run.seed == own.seed
    settings = [run.columns[key] for key in ('rate', 'budget', 'planned')]
    assert sum(setting != 1.0 for setting in settings[:2]) == 1
  free = {r.columns['planned'] for r in others if 'free' in r.submission}
  assert free == {1.0}
  assert len(robustness.trainings(options(changes=['budget']))) == 3 + 3 + 1


def test_the_averages_of_a_misled_run_are_as_long_as_at_t():
  (run,) = steps.runs('click_dlrm', 'nadamw', 0)
  twice = robustness.variants(run, ['budget'])[0]
  assert twice.columns['budget'] == 2.0
  candidates = twice.follows['candidates']
  assert list(candidates) == ['raw', 'lawa 1 %', 'ema 1 %', 'polynomial 4']
  assert candidates['raw'] == {'averaging_scheme': 'none'}
  # Fractions of 2 T.
  assert candidates['ema 1 %'] == {
    'averaging_scheme': 'ema',
    'averaging_horizon': 0.005,
    'averaging_every': 0.001,
  }
  assert candidates['polynomial 4']['averaging_every'] == 0.001
  told = robustness.variants(run, ['budget'])[-1]
  assert told.budget_factor == 2.0
  assert told.follows['candidates']['ema 1 %']['averaging_horizon'] == 0.01


class Rates(training.Follower):
  """Learning rate after each step."""

  def __init__(self):
    self.rates = []

  def after_step(self, run):
    (group,) = run.state.optimizer_state['optimizer'].param_groups
    self.rates.append(group['lr'])

  def findings(self):
    return {'curves': {}, 'rates': self.rates}


def test_a_misled_run_goes_on_behind_the_end_of_its_schedule(shrink, tmp_path):
  shrink(click_dlrm.Workload, steps=20, eval_every_steps=10, target=9.0, size=8)

  def rates(run):
    kind = type(run)
    fields = {k: getattr(run, k) for k in kind.__dataclass_fields__}
    watched = kind(**fields | {'follower': Rates, 'follows': {}})
    return watched.execute(str(tmp_path))['rates']

  given = options(methods=METHODS, changes=['budget'])
  runs = robustness.trainings(given)
  primal_run = {
    (r.columns.get('budget', 1.0), r.columns.get('planned', 1.0)): r
    for r in runs
    if r.submission == 'nadamw_primal'
  }
  usual, misled = rates(primal_run[1.0, 1.0]), rates(primal_run[2.0, 1.0])
  told = rates(primal_run[2.0, 2.0])
  assert len(usual) == 20
  assert misled[:20] == usual
  assert misled[20:] == [0.0] * 20
  assert len(told) == 40
  assert told[19] > 0.0
  assert len(rates(primal_run[0.5, 0.5])) == 10
  # Without a schedule both runs are the same run.
  usual, misled = (
    rates(r) for r in runs if r.submission == 'nadamw_schedule_free'
  )
  assert misled[:20] == usual


def falling(value, last=100):
  return [[s, 1.0, value if s == last else 9.0] for s in range(50, last + 1, 2)]


def run_of(method, name, value, **columns):
  tuned_for = 'raw' if name == 'raw' else 'shown'
  budget = round(100 * columns.get('budget', 1.0))
  return result(
    {name: falling(value, budget)},
    optimizer=method,
    tuned_for=tuned_for,
    **columns,
  ) | {'budget_steps': budget}


def setting(**changes):
  return robustness.SETTING | changes


def results():
  return [
    run_of('nadamw', 'raw', 0.40),
    run_of('nadamw', 'raw', 0.44, **setting(rate=2.0)),
    run_of('nadamw', 'raw', 0.40, **setting(budget=2.0)),
    run_of('nadamw', 'raw', 0.30, **setting(budget=2.0, planned=2.0)),
    run_of('nadamw_schedule_free', 'shown', 0.50),
    run_of('nadamw_schedule_free', 'shown', 0.45, **setting(budget=2.0)),
  ]


def test_losses_are_relative_to_the_same_method_at_t():
  rows = robustness.rows_of(results())
  assert tuple(rows[0]) == robustness.COLUMNS
  text = robustness.rates_table(rows)
  assert cells(text, 'NadamW') == ['–', '–', '+0.00', '+10.00', '–']
  # Nothing is lost by a wrong T where no T is known.
  text = robustness.budgets_table(rows)
  at_half = f'{100 * (9.0 - 0.4) / 0.4:+.2f}'
  assert cells(text, 'NadamW') == [at_half, '–', '+0.00', '-25.00']
  free = cells(text, 'NadamW, schedule-free')
  assert free[0] == free[1] == f'{100 * (9.0 - 0.5) / 0.5:+.2f}'
  assert free[2:] == ['-10.00', '-10.00']


def test_rows_of_methods_and_changes_join_in_any_order():
  declared = robustness.STUDY
  found = results()
  whole = robustness.rows_of(found)
  at_t, rate, *budgets, free, free_at_double = found
  parts = [[at_t, rate], [at_t, *budgets], [at_t, free, free_at_double]]
  for order in (parts, reversed(parts)):
    kept = []
    for part in order:
      own = robustness.rows_of(part)
      kept = kept_rows.join(
        pathlib.Path('rows.json'),
        kept,
        own,
        part,
        declared.joins,
        declared.place_of,
      )
    assert kept == whole


def test_a_method_joins_kept_rows_of_nadamw(monkeypatch):
  at_t, rate, *budgets, free, free_at_double = results()
  before = robustness.rows_of([at_t, rate, *budgets])
  monkeypatch.setattr(study.Study, 'committed', lambda *given: before)
  joined = kept_rows.join(
    pathlib.Path('rows.json'),
    before,
    robustness.rows_of([free, free_at_double]),
    [free, free_at_double],
    robustness.STUDY.joins,
    robustness.STUDY.place_of,
  )
  assert joined == robustness.rows_of(results())
  given = options(keep_baseline=True)
  assert {r.submission for r in robustness.trainings(given)} == {*METHODS}


def test_a_gain_in_a_metric_that_is_to_be_high_is_no_loss():
  higher = [
    run | {'higher_is_better': True, 'target': 0.1}
    for run in (
      run_of('nadamw', 'raw', 20.0),
      run_of('nadamw', 'raw', 10.0, **setting(rate=2.0)),
    )
  ]
  text = robustness.rates_table(robustness.rows_of(higher))
  assert cells(text, 'NadamW')[2:4] == ['+0.00', '+50.00']


def test_steps_are_ratios_to_nadamw_at_its_own_rate():
  found = [
    result({'raw': curve(80)}, optimizer='nadamw', tuned_for='raw'),
    result(
      {'raw': curve(60)}, optimizer='nadamw', tuned_for='raw', **setting(rate=2)
    ),
    result(
      {'shown': curve(72)},
      optimizer='nadamw_primal',
      tuned_for='shown',
      **setting(rate=4.0),
    ),
  ]
  text = robustness.steps_table(robustness.rows_of(found))
  assert cells(text, 'NadamW') == ['–', '–', '1.00', '0.75', '–']
  assert cells(text, 'NadamW at its EMA') == ['–', '–', '–', '–', '0.90']


def test_a_method_that_lacks_a_workload_has_no_medians():
  found = [
    *results(),
    run_of('nadamw', 'raw', 0.40) | {'workload': 'v'},
    run_of('nadamw_primal', 'shown', 0.40),
  ]
  text = robustness.rates_table(robustness.rows_of(found))
  assert cells(text, 'NadamW')[2:] == ['+0.00', '–', '–']
  assert 'NadamW at its EMA' not in text


def test_the_figure_is_drawn(tmp_path):
  path = tmp_path / 'robustness.png'
  robustness_tables.draw(robustness.rows_of(results()), path)
  assert path.stat().st_size > 10_000


def test_rows_come_from_runs(shrink, tmp_path):
  shrink(click_dlrm.Workload, steps=20, eval_every_steps=2, target=9.0, size=8)
  given = options(methods=['nadamw'])
  found = [
    execution.execute(run, str(tmp_path)) for run in robustness.trainings(given)
  ]
  rows = robustness.rows_of(found)
  by = {
    (r['method'], r['rate'], r['budget'], r['planned']): r['budget_steps']
    for r in rows
  }
  assert by['nadamw', 1.0, 0.5, 1.0] == 10
  assert by['nadamw_lawa', 1.0, 0.5, 0.5] == 10
  assert by['nadamw_ema', 1.0, 2.0, 1.0] == 40
  assert by['nadamw_polynomial', 0.25, 1.0, 1.0] == 20
  settings = {key[1:] for key in by}
  assert settings == {
    *robustness_tables.RATES.values(),
    *robustness_tables.BUDGETS.values(),
  }
