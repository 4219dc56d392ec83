"""The search: its points, its rule, its winners, and a whole small one."""

import dataclasses
import json
import math
import pathlib
import shutil

import numpy as np
import pytest
from study_runs import lines

from lab.core.errors import InputError
from lab.studies import tune
from lab.studies.parts import (
  execution,
  finals,
  methods,
  search,
  training,
  tuned,
)
from lab.studies.parts.methods import METHODS
from lab.workloads import (
  WORKLOADS,
  build_workload,
  click_dlrm,
  denoise_unet,
)
from weightavg.pytorch.shampoo import DistributedShampoo

NAN = math.nan


def test_points_fill_the_ranges_and_more_begin_with_the_same():
  few, many = (
    search.points(search.RANGES, 8, 0),
    search.points(search.RANGES, 64, 0),
  )
  assert many[:8] == few
  assert search.points(search.RANGES, 8, 1) != few
  for name, span in search.RANGES.items():
    values = np.array([point[name] for point in many])
    if 'min' in span:
      assert span['min'] <= values.min()
      assert values.max() <= span['max']
      # Each quarter of the logarithmic range has about a quarter of them.
      place = np.log(values / span['min']) / np.log(span['max'] / span['min'])
      assert np.histogram(place, 4, (0, 1))[0].min() >= 12
    else:
      assert set(values) == set(span['feasible_points'])


def ranges(**changes):
  return search.RANGES | changes


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (None, 'Must be an object with the keys learning_rate'),
    ([], 'Must be an object with the keys'),
    ({'learning_rate': search.RANGES['learning_rate']}, 'with the keys'),
    (ranges(momentum={}), 'with the keys'),
    (
      ranges(weight_decay={'min': 1.0, 'max': 0.1, 'scaling': 'log'}),
      "'weight_decay' in here: min=1.0, max=0.1",
    ),
    (
      ranges(weight_decay={'min': 0.1, 'max': 0.1, 'scaling': 'log'}),
      'min=0.1, max=0.1. Must be numbers with min < max',
    ),
    (ranges(dropout_rate={'feasible_points': []}), 'at least one'),
  ],
)
def test_ranges_that_are_no_ranges_are_refused(given, message):
  with pytest.raises(InputError, match=message):
    search.check_ranges(given, 'here')
  search.check_ranges(search.RANGES, 'here')


def test_nan_is_worse_than_any_value():
  assert search.is_better(1.0, 2.0, higher_is_better=False)
  assert search.is_better(2.0, 1.0, higher_is_better=True)
  assert not search.is_better(1.0, 1.0, higher_is_better=True)
  assert search.is_better(9.0, NAN, higher_is_better=False)
  assert not search.is_better(NAN, 9.0, higher_is_better=False)
  assert not search.is_better(NAN, NAN, higher_is_better=False)


def test_limits_are_medians_of_the_trials_that_got_there():
  trials = [{'rungs': r} for r in ([3.0, 1.0], [5.0], [4.0, 2.0], [NAN])]
  assert search.limits(trials, higher_is_better=False) == [4.5, 1.5]
  assert search.limits([], higher_is_better=False) == [None, None]
  # Where half have diverged there is no limit.
  trials = [{'rungs': r} for r in ([3.0, 1.0], [NAN])]
  assert search.limits(trials, higher_is_better=False)[0] is None
  assert search.limits(trials[:1], higher_is_better=True) == [3.0, 1.0]


@pytest.fixture
def short(shrink):
  """Trials of twelve steps, evaluated after 4, 6, ... 12."""
  shrink(click_dlrm.Workload, steps=16, eval_every_steps=1, size=32)


POINT = {
  'learning_rate': 0.01,
  'one_minus_beta1': 0.1,
  'one_minus_beta2': 0.01,
  'weight_decay': 0.1,
  'warmup_factor': 0.1,
  'dropout_rate': 0.1,
  'label_smoothing': 0.1,
}


@pytest.mark.parametrize(
  ('limits', 'stopped', 'last'),
  [
    ([None, None], None, 12),
    # A loss cannot be below 0, and is below 9.
    ([0.0, None], 4, 4),
    ([9.0, 0.0], 8, 8),
    ([9.0, 9.0], None, 12),
  ],
)
def test_a_trial_ends_at_a_rung_where_it_is_worse_than_the_limit(
  limits, stopped, last, short, tmp_path
):
  run = tune.training('click_dlrm', 'nadamw', POINT, 0, limits)
  found = run.execute(str(tmp_path))
  assert found['budget_steps'] == 12
  assert found['stopped'] == stopped
  assert found['curves']['raw'][-1][0] == last
  assert set(found['curves']) == set(tuned.CANDIDATES)
  looks = [step for step, *_ in found['curves']['raw']]
  assert looks == list(range(4, last + 1, 2))
  values = [c[2] for curve in found['curves'].values() for c in curve]
  assert found['rungs'][-1] >= min(values)
  assert len(found['rungs']) == (1 if stopped == 4 else 2)


def test_a_trial_that_diverges_ends_at_the_first_rung(short, tmp_path):
  point = POINT | {'learning_rate': 1e30, 'warmup_factor': 0.0}
  found = tune.training('click_dlrm', 'nadamw', point, 0).execute(str(tmp_path))
  assert found['stopped'] == 4
  assert math.isnan(found['rungs'][0])
  assert set(finals.best_of(found).values()) == {None}


def test_a_trial_that_its_optimizer_ends_has_diverged(short, tmp_path):
  """Shampoo raises an error where NadamW goes on with NaN."""
  point = POINT | {'learning_rate': 1e30, 'warmup_factor': 0.0}
  run = tune.training('click_dlrm', 'shampoo', point, 0)
  found = execution.execute(run, str(tmp_path))
  assert 0 < found['stopped'] < 4
  assert len(found['rungs']) == 1
  assert math.isnan(found['rungs'][0])
  assert found['curves'] == {name: [] for name in tuned.CANDIDATES}
  assert set(finals.best_of(found).values()) == {None}
  assert finals.row_of(0, POINT, found)['steps'] == []
  assert finals.finalists([found]) == []
  assert search.limits([found], higher_is_better=False) == [None, None]
  assert execution.kept(run, str(tmp_path))['stopped'] == found['stopped']


def test_a_trial_that_its_optimizer_ends_late_keeps_its_values(
  short, tmp_path, monkeypatch
):
  step, steps = DistributedShampoo.step, []

  def refuses(self, closure=None):
    steps.append(0)
    if len(steps) == 9:
      raise FloatingPointError('Invalid gradient.')
    return step(self, closure)

  monkeypatch.setattr(DistributedShampoo, 'step', refuses)
  run = tune.training('click_dlrm', 'shampoo', POINT, 0)
  found = run.execute(str(tmp_path))
  assert found['stopped'] == 9
  assert len(found['rungs']) == 2
  assert np.isfinite(found['rungs']).all()
  assert [look for look, *_ in found['curves']['raw']] == [4, 6, 8]


def test_points_have_the_terms_of_their_method():
  nadamw = tune.training('click_dlrm', 'nadamw', POINT, 0)
  shampoo = tune.training('click_dlrm', 'shampoo', POINT, 0)
  assert nadamw.point['beta2'] == 0.99
  assert 'one_minus_beta2' not in nadamw.point
  assert shampoo.point == POINT
  assert nadamw.submission == 'nadamw'


@pytest.mark.parametrize('method', METHODS)
def test_trials_of_all_methods_have_the_same_values_of_what_they_share(method):
  ranges = METHODS[method].ranges(search.RANGES)
  shared = search.points(search.RANGES, 64, 0)
  own = search.points(ranges, 64, 0)
  names = set(ranges) & set(search.RANGES)
  assert {'learning_rate', 'one_minus_beta2', 'weight_decay'} <= names
  # With more dimensions, the places of the last values may move by rounding.
  for name in names:
    expected = [point[name] for point in shared]
    assert [point[name] for point in own] == pytest.approx(expected, rel=1e-12)
  if 'one_minus_interpolation' in ranges:
    assert 'one_minus_beta1' not in ranges
    expected = [point['one_minus_beta1'] for point in shared]
    found = [point['one_minus_interpolation'] for point in own]
    assert found == pytest.approx(expected, rel=1e-12)


def test_other_shared_ranges_hold_for_all_methods():
  span = {'min': 0.3, 'max': 0.4, 'scaling': 'linear'}
  changed = METHODS['nadamw_primal'].ranges(ranges(one_minus_beta1=span))
  assert changed['one_minus_interpolation'] == span
  assert changed['averaging_horizon']['max'] == 0.2


def test_a_method_without_a_budget_warms_up_by_steps():
  (point,) = search.points(
    METHODS['nadamw_schedule_free'].ranges(search.RANGES), 1, 0
  )
  assert 'warmup_factor' not in point
  found = METHODS['nadamw_schedule_free'].point(point)
  assert found['warmup_steps'] == round(point['warmup_steps'])
  assert isinstance(found['warmup_steps'], int)
  assert found['schedule_free_power'] == point['one_plus_power'] - 1.0
  assert found['averaging_interpolation'] == (
    1.0 - point['one_minus_interpolation']
  )
  assert found['schedule'] == 'constant'
  # Warm-ups of the other methods on all workloads are in the range.
  span = METHODS['nadamw_schedule_free'].ranges(search.RANGES)['warmup_steps']
  shared = search.RANGES['warmup_factor']
  budgets = [
    tune.BUDGET_FACTOR * build_workload(name).step_hint for name in WORKLOADS
  ]
  assert span['min'] <= shared['min'] * min(budgets)
  assert shared['max'] * max(budgets) <= span['max']


@pytest.mark.parametrize('method', METHODS)
def test_a_point_and_the_terms_of_its_search_belong_together(method):
  own = METHODS[method]
  for point in search.points(own.ranges(search.RANGES), 8, 0):
    back = own.searched(own.point(point))
    if 'warmup_steps' in point:
      point['warmup_steps'] = round(point['warmup_steps'])
    found = {name: back[name] for name in point}
    assert found == pytest.approx(point, rel=1e-12)


@pytest.mark.parametrize(
  'method', [name for name in METHODS if METHODS[name].shows_average]
)
def test_the_result_of_a_trial_is_what_its_submission_shows(
  method, short, tmp_path
):
  (point,) = search.points(METHODS[method].ranges(search.RANGES), 1, 0)
  run = tune.training('click_dlrm', method, point, 0)
  found = run.execute(str(tmp_path))
  assert list(found['curves']) == ['shown']
  alone = dataclasses.replace(run, follower=Alone, follows={})
  expected = dict(alone.execute(str(tmp_path / 'alone'))['curves']['alone'])
  for step, _, value in found['curves']['shown']:
    assert expected[step] == value
  early = [v for step, _, v in found['curves']['shown'] if step <= 8]
  assert found['rungs'][-1] == min(early)


class Alone(training.Follower):
  """The run's own evaluations."""

  def __init__(self):
    self.curve = []

  def at_evaluation(self, run, metrics):
    self.curve.append((run.state.global_step, metrics['validation/loss']))

  def findings(self):
    return {'curves': {'alone': self.curve}}


def trial(stopped=None, higher=False, **best):
  """A trial whose candidates have these values, and others none."""
  curves = {
    name: [[12, 1.0, best.get(name.split()[0], NAN)]]
    for name in tuned.CANDIDATES
  }
  return {'higher_is_better': higher, 'stopped': stopped, 'curves': curves}


def test_finalists_are_the_best_four_of_each_kind():
  trials = [trial(raw=float(i), ema=10.0 - i) for i in range(10)]
  assert finals.finalists(trials) == [0, 1, 2, 3, 6, 7, 8, 9]
  trials[0] |= {'stopped': 4}
  assert finals.finalists(trials) == [1, 2, 3, 4, 6, 7, 8, 9]
  up = [trial(higher=True, raw=float(i)) for i in range(10)]
  assert finals.finalists(up) == [6, 7, 8, 9]


def test_the_best_mean_over_seeds_wins_and_a_diverged_seed_loses():
  one = [trial(raw=1.0, ema=5.0), trial(raw=3.0, ema=5.0)]
  other = [trial(raw=0.0), trial(raw=5.0, ema=1.0)]
  found = finals.winners([(4, {'a': 1}, one), (7, {'a': 2}, other)])
  assert found['raw']['trial'] == 4
  assert found['raw']['mean'] == 2.0
  assert found['raw']['point'] == {'a': 1}
  # The first of equal averages.
  assert found['ema']['average'] == 'ema 0.5 %'
  assert found['ema']['trial'] == 4
  assert 'lawa' not in found


@pytest.fixture
def in_process(monkeypatch):
  """Runs in this process, where the workload is small; their number."""
  made = []

  def run_all(trainings, directory, jobs):
    results = []
    for run in trainings:
      found = execution.kept(run, directory)
      if found is None:
        made.append(run.name)
        pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
        found = execution.execute(run, directory)
      results.append(found)
    return results

  monkeypatch.setattr(execution, 'run_all', run_all)
  return made


def test_a_search_is_resumed_extended_and_refuses_other_ranges(
  short, in_process, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(search, 'COHORT', 2)
  monkeypatch.setattr(tune, 'FINAL_SEEDS', (1, 2))
  # No point is the tuned one yet.
  monkeypatch.setattr(training, 'ROOT', tmp_path)
  folder = tmp_path / 'x'
  command = ['--workload=click_dlrm', '--method=nadamw']
  command += [f'--output_dir={folder}']
  tune.main([*command, '--trials=4'])
  first = json.loads((folder / 'search.json').read_text())
  trials = json.loads((folder / 'trials.json').read_text())
  again = json.loads((folder / 'finals.json').read_text())
  assert first['trials'] == len(trials) == 4
  assert first['stopped_trials'] == sum(
    t['stopped'] is not None for t in trials
  )
  assert {row['seed'] for row in again} == {1, 2}
  winner = first['winners']['raw']
  (row,) = [r for r in again if (r['trial'], r['seed']) == (winner['trial'], 1)]
  assert row['best']['raw'] == winner['values'][0]
  assert winner['point'] == trials[winner['trial']]['point']
  assert winner['average'] == 'raw'
  shown = capsys.readouterr().out
  assert shown.startswith('4 trials, ')
  assert [line[0] for line in lines(finals.table(first))[1:]] == [
    winner['average'] for winner in first['winners'].values()
  ]

  # What is finished is not trained again.
  number = len(in_process)
  tune.main([*command, '--trials=4'])
  assert len(in_process) == number
  assert json.loads((folder / 'search.json').read_text()) == first

  other = tmp_path / 'ranges.json'
  changed = search.RANGES | {
    'learning_rate': {'min': 1e-4, 'max': 1e-3, 'scaling': 'log'}
  }
  other.write_text(json.dumps(changed))
  with pytest.raises(InputError, match=r'Invalid ranges=.*was begun with'):
    tune.main([*command, '--trials=4', f'--ranges={other}'])
  assert json.loads((folder / 'search.json').read_text()) == first

  tune.main([*command, '--trials=6'])
  more = json.loads((folder / 'trials.json').read_text())
  assert more[:4] == trials
  assert len(more) == 6

  path = training.tuned_path('click_dlrm')
  path.parent.mkdir(parents=True)
  tune.main([*command, '--report_only', '--promote'])
  record = json.loads((folder / 'search.json').read_text())
  raw = record['winners']['raw']['point']
  assert json.loads(path.read_text()) == [METHODS['nadamw'].point(raw)]
  assert training.tuned_point('click_dlrm') == METHODS['nadamw'].point(raw)

  # Shampoo has NadamW's point in its terms, until it has one of its own.
  in_terms = training.tuned_point('click_dlrm', 'shampoo')
  assert in_terms == pytest.approx(raw)
  changed = {'raw': {'point': raw | {'learning_rate': 0.5}}}
  tune.promote(record | {'method': 'shampoo', 'winners': changed})
  assert training.tuned_point('click_dlrm', 'shampoo')['learning_rate'] == 0.5
  assert training.tuned_point('click_dlrm') == METHODS['nadamw'].point(raw)


@pytest.mark.parametrize('method', ['nadamw_primal', 'nadamw_schedule_free'])
def test_a_method_that_shows_its_average_is_searched_and_promoted(
  method, short, in_process, tmp_path, monkeypatch
):
  monkeypatch.setattr(search, 'COHORT', 2)
  monkeypatch.setattr(tune, 'FINAL_SEEDS', (1,))
  monkeypatch.setattr(training, 'ROOT', tmp_path)
  path = training.tuned_path('click_dlrm')
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps([METHODS['nadamw'].point(POINT)]))
  folder = tmp_path / 'x'
  command = ['--workload=click_dlrm', f'--method={method}', '--trials=3']
  tune.main([*command, f'--output_dir={folder}', '--promote'])
  record = json.loads((folder / 'search.json').read_text())
  trials = json.loads((folder / 'trials.json').read_text())
  assert [list(row['curves']) for row in trials] == 3 * [['shown']]
  assert list(record['winners']) == ['shown']
  assert set(record['winners']['shown']['point']) == set(record['ranges'])
  # The incumbent is NadamW's point with the submission's defaults.
  incumbent = record['incumbent']
  assert incumbent['learning_rate'] == POINT['learning_rate']
  assert incumbent['one_minus_interpolation'] == pytest.approx(0.1)
  again = json.loads((folder / 'finals.json').read_text())
  assert 'incumbent' in [row['trial'] for row in again]
  # Promoted is a point of its own; NadamW's is what it was.
  own = training.tuned_path('click_dlrm', method)
  assert own.name == f'click_dlrm_{method}.json'
  (point,) = json.loads(own.read_text())
  assert point == METHODS[method].point(record['winners']['shown']['point'])
  assert training.tuned_point('click_dlrm', method) == point
  assert training.tuned_point('click_dlrm') == METHODS['nadamw'].point(POINT)
  assert tuned.kinds_by_point('click_dlrm', method) == [(point, ('shown',))]


def test_a_dry_run_counts_runs_and_writes_nothing(short, tmp_path, capsys):
  folder = tmp_path / 'x'
  command = ['--workload=click_dlrm', f'--output_dir={folder}', '--dry_run']
  tune.main([*command, '--method=nadamw_primal', '--trials=8'])
  shown = capsys.readouterr().out
  # Four of one kind and the incumbent, with three seeds each.
  assert shown.startswith('8 trials, of which 0 are finished, and at most 15 ')
  assert 'click_dlrm: 23 runs, ' in shown
  assert not folder.exists()
  # NadamW has four kinds of averages, and all eight trials may be the best.
  tune.main([*command, '--method=nadamw', '--trials=8'])
  assert 'click_dlrm: 35 runs, ' in capsys.readouterr().out


def ended(tmp_path, *more):
  """A command, and the folder of its search of four trials."""
  folder = tmp_path / 'x'
  command = ['--workload=click_dlrm', '--method=nadamw', *more]
  command += [f'--output_dir={folder}']
  tune.main([*command, '--trials=4'])
  return command, folder


def files(folder):
  return {path.name: path.read_bytes() for path in folder.glob('*.json')}


@pytest.fixture
def small(short, in_process, tmp_path, monkeypatch):
  """A search in cohorts of two, with one seed for the best."""
  monkeypatch.setattr(search, 'COHORT', 2)
  monkeypatch.setattr(tune, 'FINAL_SEEDS', (1,))
  monkeypatch.setattr(training, 'ROOT', tmp_path)
  return in_process


def test_a_search_without_its_runs_keeps_its_rows(
  small, tmp_path, capsys, monkeypatch
):
  """A clone has the rows alone; an interrupted command shortened them."""
  command, folder = ended(tmp_path)
  before = files(folder)
  tune.main([*command, '--trials=4', '--dry_run'])
  assert '4 trials, of which 4 are finished, and at most 0 ' in (
    capsys.readouterr().out
  )
  shutil.rmtree(folder / 'runs')
  tune.main([*command, '--trials=4', '--dry_run'])
  assert '4 trials, of which 0 are finished, and at most 4 ' in (
    capsys.readouterr().out
  )
  made, run_all = [], execution.run_all

  def interrupted(*arguments):
    made.append(arguments)
    if len(made) == 2:
      raise KeyboardInterrupt
    return run_all(*arguments)

  monkeypatch.setattr(execution, 'run_all', interrupted)
  with pytest.raises(KeyboardInterrupt):
    tune.main([*command, '--trials=4'])
  assert files(folder) == before
  tune.main([*command, '--trials=4', '--dry_run'])
  assert 'of which 2 are finished' in capsys.readouterr().out
  # What was interrupted ends as what was not.
  tune.main([*command, '--trials=4'])
  assert files(folder) == before


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (
      lambda f: (f / 'search.json').write_text('{"ranges": '),
      'Cannot read the s',
    ),
    (lambda f: (f / 'search.json').write_text('[1]'), 'Cannot read the search'),
    (
      lambda f: (f / 'search.json').write_text('{"ranges": {}, "trials": 4}'),
      'Cannot read the search',
    ),
    (lambda f: (f / 'search.json').unlink(), 'It is missing beside trials'),
    (lambda f: (f / 'trials.json').write_text('5'), 'Cannot read the trials'),
    (lambda f: (f / 'trials.json').write_text('[{'), 'Cannot read the trials'),
  ],
)
def test_a_damaged_search_is_named_and_left_alone(
  damage, message, small, tmp_path
):
  command, folder = ended(tmp_path)
  damage(folder)
  before = files(folder)
  for more in ([], ['--dry_run'], ['--report_only', '--promote']):
    with pytest.raises(InputError, match=message):
      tune.main([*command, '--trials=4', *more])
  assert files(folder) == before
  assert not (tmp_path / 'tuning_search_spaces').exists()


def test_fewer_trials_are_refused_where_the_rows_are_lost(small, tmp_path):
  command, folder = ended(tmp_path)
  (folder / 'trials.json').unlink()
  with pytest.raises(InputError, match=r'trials=2\. The search in .* has 4'):
    tune.main([*command, '--trials=2'])
  tune.main([*command, '--trials=4'])
  assert len(json.loads((folder / 'trials.json').read_text())) == 4


@pytest.mark.parametrize('more', [[], ['--dry_run']])
def test_fewer_trials_and_other_searches_are_refused(
  more, small, tmp_path, monkeypatch
):
  command, folder = ended(tmp_path)
  before = files(folder)
  with pytest.raises(
    InputError, match=r'Invalid trials=2\. The search in .* 4'
  ):
    tune.main([*command, '--trials=2', *more])
  with monkeypatch.context() as patch:
    patch.setattr(tune, 'SEED', 1)
    with pytest.raises(InputError, match=r'Invalid seed=1\. .* with 0'):
      tune.main([*command, '--trials=4', *more])
  for other in ('--method=shampoo', '--workload=stdlib_lm'):
    with pytest.raises(InputError, match='was begun with'):
      tune.main([*command, '--trials=4', other, *more])
    with pytest.raises(InputError, match='was begun with'):
      tune.main([*command, '--report_only', '--promote', other])
  assert files(folder) == before
  assert not (tmp_path / 'tuning_search_spaces').exists()


def test_nothing_is_promoted_where_all_trials_diverged(small, tmp_path):
  command, folder = ended(tmp_path)
  record = json.loads((folder / 'search.json').read_text())
  (folder / 'search.json').write_text(json.dumps(record | {'winners': {}}))
  with pytest.raises(
    InputError, match='Nothing to promote: no trial of nadamw'
  ):
    tune.main([*command, '--report_only', '--promote'])


def test_methods_without_a_search_start_from_their_base(monkeypatch, tmp_path):
  monkeypatch.setattr(training, 'ROOT', tmp_path)
  path = training.tuned_path('click_dlrm')
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps([METHODS['nadamw'].point(POINT)]))
  found = training.tuned_point('click_dlrm', 'nadamw_schedule_free')
  # 2 / (1 - 0.99) steps.
  assert found['warmup_steps'] == 200
  assert 'warmup_factor' not in found
  assert found['one_minus_beta1'] == 1.0
  # Shampoo's own point is the base of its form, once there is one.
  primal = training.tuned_point('click_dlrm', 'shampoo_primal')
  assert primal['one_minus_beta2'] == pytest.approx(0.01)
  assert primal['averaging_horizon'] == 0.03
  other = training.tuned_path('click_dlrm', 'shampoo')
  other.write_text(json.dumps([POINT | {'learning_rate': 0.5}]))
  primal = training.tuned_point('click_dlrm', 'shampoo_primal')
  assert (primal['learning_rate'], primal['one_minus_beta1']) == (0.5, 1.0)


def test_kinds_that_share_a_point_share_a_run(monkeypatch, tmp_path):
  monkeypatch.setattr(training, 'ROOT', tmp_path)
  monkeypatch.setattr(tuned, 'ROOT', tmp_path)
  path = training.tuned_path('click_dlrm')
  path.parent.mkdir(parents=True)
  one, other = POINT, POINT | {'learning_rate': 0.02}
  path.write_text(json.dumps([METHODS['nadamw'].point(one)]))
  assert tuned.kinds_by_point('click_dlrm', 'nadamw') == [
    (METHODS['nadamw'].point(one), ('raw',))
  ]
  points = {'raw': one, 'lawa': other, 'ema': one, 'polynomial': other}
  record = {'winners': {kind: {'point': p} for kind, p in points.items()}}
  folder = tuned.folder('click_dlrm', 'nadamw')
  folder.mkdir(parents=True)
  (folder / 'search.json').write_text(json.dumps(record))
  assert tuned.kinds_by_point('click_dlrm', 'nadamw') == [
    (METHODS['nadamw'].point(one), ('raw', 'ema')),
    (METHODS['nadamw'].point(other), ('lawa', 'polynomial')),
  ]


def test_the_incumbent_takes_part_in_the_finals(monkeypatch, tmp_path):
  seen = []

  def run_all(trainings, directory, jobs):
    seen.extend(run.point for run in trainings)
    return [
      # The lower the rate, the better.
      trial(raw=run.point['learning_rate'])
      | {'seed': run.seed, 'budget_steps': 9, 'rungs': []}
      for run in trainings
    ]

  monkeypatch.setattr(execution, 'run_all', run_all)
  monkeypatch.setattr(training, 'ROOT', tmp_path)
  path = training.tuned_path('click_dlrm')
  path.parent.mkdir(parents=True)
  # Without regularizers: their values are 0.
  point = {k: v for k, v in POINT.items() if k not in methods.REGULARIZERS}
  point |= {'learning_rate': 1e-4}
  path.write_text(json.dumps([METHODS['nadamw'].point(point)]))
  folder = tmp_path / 'out'

  def tune_again(number):
    return tune.tune('click_dlrm', 'nadamw', search.RANGES, number, folder, 1)

  record = tune_again(2)
  assert len(seen) == 2 + 3 * 3
  winner = record['winners']['raw']
  assert winner['trial'] == 'incumbent'
  expected = point | dict.fromkeys(methods.REGULARIZERS, 0.0)
  assert winner['point'] == pytest.approx(expected)
  # A search that goes on has the incumbent of its start.
  path.write_text(json.dumps([METHODS['nadamw'].point(POINT)]))
  assert tune_again(3)['incumbent'] == record['incumbent']

  # A point that lacks a hyperparameter cannot take part.
  path.write_text(json.dumps([{'learning_rate': 0.1}]))
  assert tuned.incumbent('click_dlrm', 'nadamw', POINT) is None


def test_a_workload_without_a_regularizer_does_not_search_over_it(
  monkeypatch, tmp_path
):
  seen = []

  def run_all(trainings, directory, jobs):
    seen.extend(run.point for run in trainings)
    return [trial(raw=1.0) | {'seed': 0, 'budget_steps': 9, 'rungs': []}] * len(
      trainings
    )

  monkeypatch.setattr(execution, 'run_all', run_all)
  monkeypatch.setattr(training, 'ROOT', tmp_path)
  assert denoise_unet.Workload.regularizers == ('dropout_rate',)
  tune.tune('denoise_unet', 'shampoo', search.RANGES, 2, tmp_path, 1)
  full = search.points(search.RANGES, 2, tune.SEED)
  assert seen[:2] == [
    {k: v for k, v in point.items() if k != 'label_smoothing'} for point in full
  ]


@pytest.mark.parametrize(
  ('name', 'span'),
  [
    ('one_minus_beta1', {'min': 0.5, 'max': 5.0, 'scaling': 'log'}),
    ('weight_decay', {'min': -1.0, 'max': 1.0, 'scaling': 'linear'}),
    ('warmup_factor', {'min': 0.02, 'max': 3.0, 'scaling': 'log'}),
    ('dropout_rate', {'feasible_points': ['x']}),
    ('one_minus_beta2', {'feasible_points': [None]}),
    ('weight_decay', {'feasible_points': [True]}),
  ],
)
def test_ranges_beyond_a_hyperparameter_are_refused(name, span, tmp_path):
  path = tmp_path / 'ranges.json'
  path.write_text(json.dumps(search.RANGES | {name: span}))
  folder = tmp_path / 'out'
  with pytest.raises(InputError, match=f'Invalid range of {name!r} in '):
    tune.main(
      ['--workload=click_dlrm', '--method=nadamw', f'--ranges={path}',
       f'--output_dir={folder}']
    )  # fmt: skip
  assert not folder.exists()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--workload=x', '--method=nadamw'], "workload='x'. Must be among click"),
    (
      ['--workload=click_dlrm', '--method=adam'],
      "Invalid method='adam'. Must be among nadamw, shampoo",
    ),
    (
      ['--workload=click_dlrm', '--method=nadamw', '--trials=0'],
      'Invalid trials=0',
    ),
    (
      ['--workload=click_dlrm', '--method=nadamw', '--ranges=none.json'],
      'Cannot read the ranges none.json: missing, or no JSON',
    ),
    (
      ['--workload=click_dlrm', '--method=nadamw', '--report_only'],
      'No finished search is in',
    ),
    (['--method=nadamw'], 'required: --workload'),
  ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(
  arguments, message, tmp_path
):
  folder = tmp_path / 'out'
  with pytest.raises(InputError, match=message):
    tune.main([*arguments, f'--output_dir={folder}'])
  assert not folder.exists()
