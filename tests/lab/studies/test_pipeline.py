"""Runs are kept by content; rows follow from curves; a study is one file."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from pages import ROOT
from study_runs import curve, result

from lab.core.errors import InputError
from lab.studies.parts import execution, frame, goals, plots, study, training
from lab.studies.parts.averages import Averages
from lab.studies.parts.kept_rows import BY_SEED
from lab.workloads import click_dlrm

RAW = {'raw': {'averaging_scheme': 'none'}}


@pytest.fixture
def run(shrink):
  """A run of twelve steps with an evaluation after every four."""
  shrink(click_dlrm.Workload, steps=12, eval_every_steps=4, target=0.0)
  return training.Training(
    workload='click_dlrm',
    submission='nadamw',
    point=training.tuned_point('click_dlrm'),
    seed=3,
    follower=Averages,
    follows={'candidates': RAW},
  )


@pytest.mark.parametrize(
  'changes',
  [
    {'seed': 4},
    {'epochs': 2},
    {'point': {'learning_rate': 0.5}},
    {'submission': 'shampoo'},
    {'follows': {'candidates': RAW, 'evaluated_from': 0.5}},
    {'budget_factor': 0.75},
    {'columns': {'optimizer': 'x'}},
  ],
)
def test_a_run_that_differs_has_another_name(changes, run):
  assert dataclasses.replace(run, **changes).name != run.name
  assert dataclasses.replace(run).name == run.name


def test_a_run_has_another_name_after_a_change_of_target_data_or_code(
  run, monkeypatch, shrink
):
  names = {run.name}
  shrink(click_dlrm.Workload, steps=12, eval_every_steps=4, target=0.5)
  names.add(dataclasses.replace(run).name)
  without = dataclasses.replace(run, needs_target=False)
  names.add(without.name)
  shrink(click_dlrm.Workload, target=0.25)
  assert dataclasses.replace(without).name in names
  shrink(click_dlrm.Workload, size=16)
  names.add(dataclasses.replace(run).name)
  monkeypatch.setattr(Averages, 'rule', ('weightavg.schemes.auto',))
  names.add(dataclasses.replace(run).name)
  assert len(names) == 5


@pytest.mark.parametrize(
  ('text', 'same'),
  [
    ('"""Other."""\ndef f(x):\n  """Doc."""\n  return x + 1  # why\n', True),
    ('def f(x):\n  return x + 2\n', False),
    ('def g(x):\n  return x + 1\n', False),
  ],
)
def test_only_code_counts_in_a_digest(text, same, tmp_path, run):
  def content_of(code):
    path = tmp_path / 'submission.py'
    path.write_text(code)

    class Here(training.Training):
      submission_path = str(path)

    fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
    return Here(**fields).name

  before = content_of('def f(x):\n  return x + 1\n')
  assert (content_of(text) == before) == same


def test_a_finished_run_is_read_and_not_made_again(run, tmp_path, capsys):
  assert execution.finished([run], str(tmp_path)) == []
  made = execution.execute(run, str(tmp_path))
  steps = [step for step, _, _ in made['curves']['raw']]
  assert steps == [4, 8, 12]
  # No process is started for it.
  assert execution.run_all([run], str(tmp_path), jobs=1) == [made]
  other = dataclasses.replace(run, seed=4)
  assert execution.finished([other, run], str(tmp_path)) == [made]
  path = tmp_path / f'{run.name}.json'
  for text in ('{"content":', '{"result": {}}', '[1]'):
    path.write_text(text)
    assert execution.finished([run], str(tmp_path)) == []


def test_a_run_that_fails_does_not_stop_the_others(run, tmp_path, capfd):
  """Runs of other processes: five steps of a workload as it is."""
  wrong = dataclasses.replace(run, point={'learning_rate': -1.0})
  right = dataclasses.replace(run, budget_factor=5 / click_dlrm.Workload.steps)
  with pytest.raises(ValueError, match=r'Invalid learning_rate=-1.0'):
    execution.run_all([wrong, right], str(tmp_path), jobs=1)
  found = json.loads((tmp_path / f'{right.name}.json').read_text())['result']
  assert found['budget_steps'] == 5
  assert not (tmp_path / f'{wrong.name}.json').exists()
  assert f'{wrong.name} failed: Invalid learning_rate' in capfd.readouterr().err


def test_a_run_of_a_part_of_the_step_hint_has_that_budget(run, tmp_path):
  part = dataclasses.replace(run, budget_factor=0.75)
  found = part.execute(str(tmp_path))
  assert found['budget_steps'] == 9
  # An evaluation follows the last step.
  assert [step for step, _, _ in found['curves']['raw']] == [4, 8, 9]


def test_rows_give_first_crossings_and_ratios_to_the_baseline():
  rows = frame.rows_of(
    [
      result({'raw': curve(80), 'ema': curve(50), 'lawa': curve(None)}, a=1),
      result({'raw': curve(60)}, seed=1, a=1),
      result({'raw': curve(64)}, a=2),
    ],
    {'a': 1, 'candidate': 'raw'},
  )
  steps = [80, 50, None, 60, 64]
  assert [r['steps_to_target'] for r in rows] == steps
  assert [r['ratio_to_nadamw'] for r in rows] == [1.0, 0.625, None, 1.0, 0.8]
  assert [r['seconds_to_target'] for r in rows] == [8.0, 5.0, None, 6.0, 6.4]
  assert [r['fraction_of_budget'] for r in rows] == [0.8, 0.5, None, 0.6, 0.64]
  assert [r['at_first_evaluation'] for r in rows] == [0, 1, 0, 0, 0]
  assert [r['best_validation'] for r in rows] == [0.1, 0.1, 0.9, 0.1, 0.1]


def test_ratios_are_unknown_where_the_baseline_never_arrives():
  found = result({'raw': curve(None), 'ema': curve(50)})
  rows = frame.rows_of([found], {'candidate': 'raw'})
  assert [r['ratio_to_nadamw'] for r in rows] == [None, None]


def test_the_median_counts_runs_that_never_arrive_as_later_than_all():
  never = math.inf
  assert frame.median([0.8, never, 0.9]) == 0.9
  assert frame.median([0.8, 0.9]) == pytest.approx(0.85)
  assert frame.median([0.8, never]) == never
  assert frame.median([0.8, never, never]) == never
  assert frame.median([]) == never
  rows = [{'steps_to_target': 5, 'x': None}, {'steps_to_target': None, 'x': 1}]
  data = frame.read(rows)
  assert data['steps_to_target'].tolist() == [5.0, never]
  assert data['x'].isna().tolist() == [True, False]


def test_a_ratio_is_at_most_that_to_the_budget_where_the_baseline_is_late():
  keys = ('steps_to_target', 'ratio_to_nadamw', 'budget_steps')
  values = [(50, 0.625, 100), (88, None, 100), (None, None, 100)]
  data = frame.read([dict(zip(keys, v, strict=True)) for v in values])
  assert data['ratio_to_nadamw'].tolist() == [0.625, 0.88, math.inf]


def test_goals_are_compared_with_the_best_single_length():
  def rows(optimizer, candidate, ratios, best=0.5):
    return [
      {
        'optimizer': optimizer,
        'workload': 'a',
        'seed': seed,
        'candidate': candidate,
        'tuned_for': 'raw',
        'steps_to_target': 100 * ratio,
        'ratio_to_nadamw': ratio,
        'budget_steps': 1000,
        'best_validation': best + 0.1 * seed,
        'higher_is_better': True,
      }
      for seed, ratio in enumerate(ratios)
    ]

  study = [
    *rows('nadamw', 'raw', (1.0, 1.0, 1.0)),
    *rows('nadamw', 'lawa 1 %', (0.9, 0.8, 0.85)),
    *rows('nadamw', 'lawa 5 %', (0.9, 0.84, 0.9)),
    *rows('nadamw', 'ema 1 %', (0.9, 0.9, 0.9), best=0.29),
    *rows('shampoo', 'raw', (0.6, 0.6, 0.6)),
    *rows('shampoo', 'ema 1 %', (0.7, 0.8, 0.7)),
  ]
  # Of another point: not counted.
  other = {'tuned_for': 'ema', 'ratio_to_nadamw': 0.1}
  study += [row | other for row in study[-3:]]
  auto = [{'candidate': 'auto', 'ratio_to_nadamw': r} for r in (0.9, 0.95)]
  auto.append({'candidate': 'ema 0.01', 'ratio_to_nadamw': 0.2})
  lines = goals.table(study, auto).splitlines()
  cells = [[c.strip() for c in line.split('|')[2:6]] for line in lines[2:]]
  assert cells == [
    ['≤ 0.85', '0.85', 'lawa 1 %', 'reached'],
    ['≤ 0.85', '0.90', 'ema 1 %', '**missed**'],
    ['≤ 0.88', '0.85', 'lawa 1 %', 'reached'],
    ['≤ 0.88', '0.90', 'ema 1 %', '**missed**'],
    ['≤ 0.86', '0.93', 'auto', '**missed**'],
    ['≤ 0.72', '0.70', 'ema 1 %', 'reached'],
    ['≥ -1.00', '-1.05', 'ema 1 % on a', '**missed**'],
  ]


def test_a_heat_map_shows_what_was_not_reached_as_a_dash():
  table = pd.DataFrame({'a': [0.5, math.inf], 'b': [0.75, 1.0]}, ['v', 'w'])
  with plots.panels(1, 1, 2, 2) as (_, panels):
    axes = panels[0][0]
    plots.heat_map(axes, table, 0.5, 1.0)
    texts = [text.get_text() for text in axes.texts]
    image = axes.images[0].get_array()
  assert texts == ['0.50', '0.75', '–', '1.00']
  assert image.mask.tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--workloads=x'], "Invalid workloads='x'. Must be all or among a"),
    (['--seeds=x'], "Invalid seeds='x'. Must be integers in"),
    (['--seeds=1,1'], '1 is given twice'),
    (['--kinds=2'], "Invalid kinds='2'. Must be all or among 0.5, b"),
    (['--jobs=0'], 'Invalid jobs=0'),
    (['--other'], 'unrecognized arguments'),
    (['--report_only'], 'No finished run of these is in .*, and no r.json in'),
  ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(
  arguments, message, tmp_path, monkeypatch
):
  monkeypatch.setattr(study, 'WORKLOADS', {'a': ''})
  declared = study.Study(
    folder='none',
    seeds=(0,),
    workloads=('a',),
    trainings=lambda options: [],
    files={'r.json': list},
    tables={},
    options=(study.Option('kinds', (0.5, 'b'), 'of things'),),
  )
  folder = tmp_path / 'out'
  with pytest.raises(InputError, match=message):
    study.main(
      'none', 'Text.', declared, [f'--output_dir={folder}', *arguments]
    )
  assert not folder.exists()


def _declared(run, drawn, joins):
  """A study of a run a seed; odd seeds have a row in a second file."""

  def rows_of(results):
    return [{'workload': r['workload'], 'seed': r['seed']} for r in results]

  return study.Study(
    folder='none',
    seeds=(0, 1),
    workloads=('click_dlrm',),
    trainings=lambda options: [
      dataclasses.replace(run, seed=seed) for seed in options.seeds
    ],
    files={
      'r.json': rows_of,
      'odd.json': lambda results: [
        row for row in rows_of(results) if row['seed'] % 2
      ],
    },
    tables={
      'Seeds': ('r.json', lambda rows: str([r['seed'] for r in rows])),
      'Odd': ('odd.json', lambda rows: f'{len(rows)} odd'),
    },
    figures={'f.png': ('r.json', lambda rows, path: drawn.append(rows))},
    joins=joins,
  )


def _row(seed, **columns):
  return {'workload': 'click_dlrm', 'seed': seed, **columns}


def _contents(folder):
  return {p.name: json.loads(p.read_text()) for p in folder.glob('*.json')}


@pytest.mark.parametrize('more', [[], ['--report_only']])
def test_runs_of_one_seed_leave_the_rows_of_others(more, run, tmp_path, capsys):
  drawn = []
  declared = _declared(run, drawn, BY_SEED)
  folder = tmp_path / 'out'
  runs = folder / 'runs'
  command = ['--jobs=1', f'--output_dir={folder}', *more]
  execution.execute(dataclasses.replace(run, seed=1), str(runs))
  study.main('none', 'Text.', declared, [*command, '--seeds=1'])
  assert _contents(folder) == {'r.json': [_row(1)], 'odd.json': [_row(1)]}
  assert 'stay' not in capsys.readouterr().err
  # As in a clone, the rows are there and the run is not.
  shutil.rmtree(runs)
  execution.execute(dataclasses.replace(run, seed=0), str(runs))
  study.main('none', 'Text.', declared, [*command, '--seeds=0'])
  printed = capsys.readouterr()
  whole = [_row(0), _row(1)]
  assert _contents(folder) == {'r.json': whole, 'odd.json': [_row(1)]}
  assert 'r.json: 1 rows of other runs stay.' in printed.err
  # Tables and figures are of the files.
  assert '[0, 1]' in printed.out
  assert '1 odd' in printed.out
  assert drawn == [[_row(1)], whole]


@pytest.mark.parametrize('joins', [(), BY_SEED])
@pytest.mark.parametrize('more', [[], ['--report_only']])
def test_runs_that_would_lose_rows_write_nothing(
  more, joins, run, tmp_path, capsys
):
  drawn = []
  declared = _declared(run, drawn, joins)
  folder = tmp_path / 'out'
  execution.execute(dataclasses.replace(run, seed=0), str(folder / 'runs'))
  rows = [_row(0, method='a'), _row(0, method='b')]
  before = {'r.json': rows, 'odd.json': [_row(1)]}
  for name, content in before.items():
    (folder / name).write_text(json.dumps(content))
  command = ['--jobs=1', f'--output_dir={folder}', '--seeds=0', *more]
  study.main('none', 'Text.', declared, command)
  printed = capsys.readouterr()
  assert 'Nothing is written: these runs lack 2 rows of' in printed.err
  assert 'r.json, such as workload=click_dlrm, seed=0, method=a.' in printed.err
  # A table without rows of its own is that of the file.
  assert '[0]' in printed.out
  assert '1 odd' in printed.out
  assert _contents(folder) == before
  assert not drawn
  # In a folder without rows, no row is a file of its own.
  for path in folder.glob('*.json'):
    path.unlink()
  study.main('none', 'Text.', declared, command)
  assert _contents(folder) == {'r.json': [_row(0)], 'odd.json': []}
  assert '0 odd' in capsys.readouterr().out


def test_a_damaged_file_is_named_before_anything_runs(
  run, tmp_path, monkeypatch
):
  declared = _declared(run, [], BY_SEED)
  (tmp_path / 'odd.json').write_text('[{')
  monkeypatch.setattr(execution, 'run_all', None)
  with pytest.raises(InputError, match=r'Cannot read the rows .*odd\.json'):
    study.main('none', 'Text.', declared, [f'--output_dir={tmp_path}'])


@pytest.mark.parametrize('name', ['', 'none'])
def test_an_unknown_study_lists_those_that_exist(name):
  done = subprocess.run(
    [sys.executable, '-m', 'lab.studies', *([name] if name else [])],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert done.returncode == 1
  assert done.stderr.splitlines() == [
    f'error: Invalid study={name!r}. Must be among auto, bema, calibrate, '
    'choices, claims, frameworks, gains, horizon, primal, published, '
    'quickstart, refreshing, repeated, robustness, running_statistics, '
    'sequences, steps, tune, unseen.'
  ]


WORKLOAD = '''
"""A workload in one file."""
from lab.workloads import click_dlrm

class Workload(click_dlrm.Workload):
  name = 'tiny'
  steps = 20
  batch_size = 6
  sizes = {'eval_train': 8, 'validation': 8, 'test': 8}
  evaluation_batch_size = 8
'''
STUDY = '''
"""A study in one file."""
from lab.studies.parts import frame, tables
from lab.studies.parts.averages import Averages
from lab.studies.parts.kept_rows import BY_SEED
from lab.studies.parts.study import Study
from lab.studies.parts.training import Training

RAW = {'raw': {'averaging_scheme': 'none'}}
EMA = {'ema': {'averaging_scheme': 'ema', 'averaging_horizon': 0.2}}

def trainings(options):
  return [
    Training(
      workload=workload, submission='nadamw', point={'learning_rate': 0.01},
      seed=seed, follower=Averages, follows={'candidates': RAW | EMA},
    )
    for workload in options.workloads for seed in options.seeds
  ]

def rows_of(results):
  rows = frame.rows_of(results, {'candidate': 'raw'})
  return frame.select(rows, ('workload', 'candidate', 'budget_steps'))

def table(rows):
  return tables.markdown(['candidate'], [[r['candidate']] for r in rows])

STUDY = Study(folder='mine', seeds=(0,), workloads=('tiny',),
  trainings=trainings, files={'mine.json': rows_of},
  tables={'Mine': ('mine.json', table)})
'''


def test_a_workload_and_a_study_are_one_file_each(tmp_path):
  for folder in ('lab', 'submissions', 'weightavg', 'tuning_search_spaces'):
    shutil.copytree(
      ROOT / folder,
      tmp_path / folder,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  (tmp_path / 'lab/workloads/tiny.py').write_text(WORKLOAD)
  targets = ROOT / 'lab/workloads/click_dlrm.json'
  (tmp_path / 'lab/workloads/tiny.json').write_text(targets.read_text())
  (tmp_path / 'lab/studies/mine.py').write_text(STUDY)
  # The copy comes before the clone that an editable installation names.
  done = subprocess.run(
    [sys.executable, '-m', 'lab.studies', 'mine', '--jobs=1'],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  rows = json.loads((tmp_path / 'results/mine/mine.json').read_text())
  assert [row['candidate'] for row in rows] == ['raw', 'ema']
  assert {row['budget_steps'] for row in rows} == {20}
  assert '| ema' in done.stdout
