"""The command: a whole small search, resumed, extended and promoted."""

import json
import pathlib
import shutil

import pytest
from study_runs import POINT, lines, trial

from lab.core.errors import InputError
from lab.studies import tune
from lab.studies.parts import (
  code,
  execution,
  finals,
  methods,
  search,
  training,
  tuned,
)
from lab.studies.parts.methods import METHODS


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
  monkeypatch.setattr(code, 'of_training', lambda: 'changed')
  tune.main([*command, '--trials=4'])
  assert len(in_process) == number
  # A search has trials, and runs of the best ones.
  warning = f'Warning: {number} of the {number} finished runs in {folder}/runs,'
  assert capsys.readouterr().err.count(warning) == 1
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


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
  """The search that the first test makes and the others copy."""
  return tmp_path_factory.mktemp('kept') / 'x'


@pytest.fixture
def ended(small, kept, tmp_path):
  """A command, and the folder of its search of four trials."""
  folder = tmp_path / 'x'
  command = ['--workload=click_dlrm', '--method=nadamw']
  command += [f'--output_dir={folder}']
  if kept.exists():
    shutil.copytree(kept, folder)
  else:
    tune.main([*command, '--trials=4'])
    shutil.copytree(folder, kept)
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


def test_a_search_without_its_runs_keeps_its_rows(ended, capsys, monkeypatch):
  """A clone has the rows alone; an interrupted command shortened them."""
  command, folder = ended
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
  damage, message, ended, tmp_path
):
  command, folder = ended
  damage(folder)
  before = files(folder)
  for more in ([], ['--dry_run'], ['--report_only', '--promote']):
    with pytest.raises(InputError, match=message):
      tune.main([*command, '--trials=4', *more])
  assert files(folder) == before
  assert not (tmp_path / 'tuning_search_spaces').exists()


def test_fewer_trials_are_refused_where_the_rows_are_lost(ended):
  command, folder = ended
  (folder / 'trials.json').unlink()
  with pytest.raises(InputError, match=r'trials=2\. The search in .* has 4'):
    tune.main([*command, '--trials=2'])
  tune.main([*command, '--trials=4'])
  assert len(json.loads((folder / 'trials.json').read_text())) == 4


@pytest.mark.parametrize('more', [[], ['--dry_run']])
def test_fewer_trials_and_other_searches_are_refused(
  more, ended, tmp_path, monkeypatch
):
  command, folder = ended
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


def test_nothing_is_promoted_where_all_trials_diverged(ended):
  command, folder = ended
  record = json.loads((folder / 'search.json').read_text())
  (folder / 'search.json').write_text(json.dumps(record | {'winners': {}}))
  with pytest.raises(
    InputError, match='Nothing to promote: no trial of nadamw'
  ):
    tune.main([*command, '--report_only', '--promote'])


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
