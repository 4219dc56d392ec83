"""The command of a declared study: its options, its files, and what stays."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from pages import ROOT

from lab.core.errors import InputError
from lab.studies.parts import code, execution, study
from lab.studies.parts.kept_rows import BY_SEED


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


@pytest.mark.parametrize('more', [[], ['--report_only']])
def test_runs_of_other_code_are_used_and_counted_in_one_line(
  more, run, tmp_path, capsys, monkeypatch
):
  declared = _declared(run, [], BY_SEED)
  runs = tmp_path / 'runs'
  for seed in (0, 1):
    execution.execute(dataclasses.replace(run, seed=seed), str(runs))
  command = ['--jobs=1', f'--output_dir={tmp_path}', *more]
  study.main('none', 'Text.', declared, command)
  assert not capsys.readouterr().err
  monkeypatch.setattr(code, 'of_training', lambda: 'changed')
  study.main('none', 'Text.', declared, command)
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(
    f'Warning: 2 of the 2 finished runs in {runs}, such as'
  )
  assert _contents(tmp_path)['r.json'] == [_row(0), _row(1)]


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
  assert f'The runs are kept in {folder}/runs.' in printed.err
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


def test_rows_that_another_command_has_written_meanwhile_stay(
  run, tmp_path, monkeypatch
):
  declared = _declared(run, [], BY_SEED)

  def run_all(trainings, directory, jobs):
    for name in ('r.json', 'odd.json'):
      (tmp_path / name).write_text(json.dumps([_row(1)]))
    # In this process, where the workload is small.
    return [execution.execute(each, directory) for each in trainings]

  monkeypatch.setattr(execution, 'run_all', run_all)
  (tmp_path / 'runs').mkdir()
  study.main(
    'none', 'Text.', declared, [f'--output_dir={tmp_path}', '--seeds=0']
  )
  assert _contents(tmp_path) == {
    'r.json': [_row(0), _row(1)],
    'odd.json': [_row(1)],
  }


@pytest.mark.parametrize('content', ['[{', '[{"a": 1}]', '{}'])
def test_a_damaged_file_is_named_before_anything_runs(
  run, tmp_path, monkeypatch, content
):
  declared = _declared(run, [], BY_SEED)
  (tmp_path / 'odd.json').write_text(content)
  monkeypatch.setattr(execution, 'run_all', None)
  with pytest.raises(InputError, match=r'Cannot read the rows .*odd\.json'):
    study.main('none', 'Text.', declared, [f'--output_dir={tmp_path}'])


def test_a_file_without_rows_is_none(run, tmp_path):
  declared = _declared(run, [], BY_SEED)
  for name in declared.files:
    (tmp_path / name).write_text('[]')
  with pytest.raises(InputError, match='No '):
    study.main(
      'none', 'T.', declared, [f'--output_dir={tmp_path}', '--report_only']
    )


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


@pytest.mark.slow
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
