"""The command: files, exit status, bad input, hostile names."""

import json
import re
import struct

import log_folders
import pytest

from lab.core.errors import InputError
from lab.report import __main__ as command

FIGURES = (
  'metric_by_steps',
  'metric_by_time',
  'profiles',
  'steps_to_target',
  'time_to_target',
)


HOSTILE = '<img src=x onerror=alert(1)> $x$ |_a_'
ARGUMENTS = ('--baseline=slow', '--what_if=slow:x0.5')


@pytest.fixture
def logs(tmp_path):
  folder = tmp_path / 'logs'
  log_folders.small_group(folder)
  return folder


@pytest.fixture
def undrawn(monkeypatch):
  """Reports without figures, which take most of their time."""
  monkeypatch.setattr(command.figures, 'save_all', lambda report, folder: [])


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """Logs, and the folder that the command wrote about them."""
  folder = tmp_path_factory.mktemp('written')
  log_folders.small_group(folder / 'logs')
  output = folder / 'deep' / 'out'
  assert _run(folder / 'logs', '--output', output, *ARGUMENTS) == 0
  return folder / 'logs', output


def _run(*arguments):
  return command.main([*map(str, arguments)])


def _json(output):
  return json.loads((output / 'report.json').read_text())


def test_writes_numbers_text_page_and_figures(written):
  _, output = written
  content = _json(output)
  # criteo1tb: 2 x, wmt: 3 x the fastest; seven workloads have no logs. Each
  # profile is a trapezoid over 99 intervals of tau.
  assert content['scores'] == pytest.approx(
    {'fast': 2 / 9, 'slow': (66.5 + 33.5) / 99 / 9}, abs=1e-12
  )
  rows = content['time_to_target']
  assert len(rows) == 2 * 9
  assert all(
    set(row)
    == {'submission', 'workload', 'seconds', 'steps', 'fraction_of_budget'}
    for row in rows
  )
  reached = {
    (row['submission'], row['workload']): row
    for row in rows
    if row['seconds'] is not None
  }
  assert set(reached) == {
    (s, w) for s in ('fast', 'slow') for w in ('criteo1tb', 'wmt')
  }
  assert reached['slow', 'criteo1tb']['seconds'] == 220.0
  assert reached['slow', 'wmt'] == {
    'submission': 'slow',
    'workload': 'wmt',
    'seconds': 600.0,
    'steps': 12000,
    'fraction_of_budget': 0.1,
  }
  (savings,) = [r for r in content['savings'] if r['submission'] == 'fast']
  # 4 GPUs; 110 and 200 s against 220 and 600 s.
  assert savings['gpu_hours'] == pytest.approx(4 * 310 / 3600)
  assert savings['saving'] == pytest.approx(1 - 310 / 820)
  (what_if,) = content['what_if']
  assert what_if['score_after'] > what_if['score_before']
  assert content['notes'][0] == (
    'fast: no logs of fastmri, finewebedu_lm, imagenet_resnet, imagenet_vit, '
    'librispeech_conformer, librispeech_deepspeech, ogbg.'
  )
  for name in FIGURES:
    picture = (output / 'figures' / f'{name}.png').read_bytes()
    width, height = struct.unpack('>II', picture[16:24])
    assert width > 400
    assert height > 200
    assert (output / 'figures' / f'{name}.pdf').read_bytes()[:5] == b'%PDF-'
    assert f'![figures/{name}.png]' in (output / 'report.md').read_text()
  assert [p.name for p in output.parent.iterdir()] == ['out']


def test_same_logs_give_the_same_files(written, tmp_path):
  logs, first = written
  second = tmp_path / 'out'
  _run(logs, '--output', second, *ARGUMENTS)
  names = {path.relative_to(first) for path in first.rglob('*.*')}
  assert names == {path.relative_to(second) for path in second.rglob('*.*')}
  assert len(names) == 3 + 2 * len(FIGURES)
  differ = [
    str(name)
    for name in names
    if (first / name).read_bytes() != (second / name).read_bytes()
  ]
  assert differ == []


@pytest.mark.usefixtures('undrawn')
def test_the_order_of_the_logs_changes_nothing(logs, tmp_path):
  for name in 'bc':
    for trial in (1, 2):
      log_folders.write_trial(
        tmp_path / name,
        name,
        'wmt',
        [(1, 1.0, 20.0)],
        metric='bleu',
        hyperparameters={'averaging_horizon': trial / 10},
        trial=trial,
      )
  folders = [logs, tmp_path / 'b', tmp_path / 'c']
  for place, order in (('1', folders), ('2', folders[::-1])):
    _run(*order, '--output', tmp_path / place)
  assert _json(tmp_path / '1') == _json(tmp_path / '2')


def test_a_report_that_fails_leaves_nothing(logs, tmp_path, monkeypatch):
  def fail(*args):
    raise OverflowError

  monkeypatch.setattr(command.page, 'render', fail)
  with pytest.raises(OverflowError):
    _run(logs, '--output', tmp_path / 'out')
  assert [path.name for path in tmp_path.iterdir()] == ['logs']


def test_targets_file_in_the_logs_is_used(logs):
  log_folders.write_targets(
    logs / 'workload_targets.json',
    {'criteo1tb': ('loss', 0.2, 1000), 'wmt': ('bleu', 40.0, 24000)},
  )
  report = command.read(command.parser().parse_args([str(logs), '--output=.']))
  (problem,) = report.problems
  assert "unknown version '9.9'" in problem
  content = report.as_json()
  seconds = [row['seconds'] for row in content['time_to_target']]
  assert seconds == [10.0, None, 10.0, None]
  assert content['scores'] == {'fast': 0.5, 'slow': 0.5}


def test_the_first_of_different_targets_is_used_and_said(logs, tmp_path):
  goals = {'criteo1tb': ('loss', 0.2, 1000), 'wmt': ('bleu', 30.0, 24000)}
  first = log_folders.write_targets(logs / 'workload_targets.json', goals)
  folders = []
  for name, target in (('same', 0.2), ('other', 0.3)):
    folders.append(tmp_path / name)
    row = (1, 1.0, 0.25)
    log_folders.write_trial(folders[-1], name, 'criteo1tb', [row])
    log_folders.write_targets(
      folders[-1] / 'workload_targets.json',
      goals | {'criteo1tb': ('loss', target, 1000)},
    )
  arguments = [*map(str, (logs, *folders)), '--output=.']
  report = command.read(command.parser().parse_args(arguments))
  _, problem = report.problems
  assert problem == (
    f'{folders[1]}/workload_targets.json: differs from {first}, whose targets '
    'are used. Choose by --targets.'
  )
  assert report.targets.goals['criteo1tb'].target == 0.2


@pytest.mark.usefixtures('undrawn')
def test_scores_are_printed_in_columns(logs, tmp_path, capsys):
  _run(logs, '--output', tmp_path / 'out')
  title, header, *rows, written = capsys.readouterr().out.splitlines()
  assert title == 'Scores'
  names = 'submission  score  low  high  targets reached  that count  workloads'
  assert re.split('  +', header) == [*names.split('  '), 'fewest studies']
  assert [row.split()[:2] for row in rows] == [
    ['fast', '0.222'],
    ['slow', '0.112'],
  ]
  assert len({len(line) for line in (header, *rows)}) == 1
  assert written.endswith('report.html, report.md, report.json')


def test_faults_are_listed_once_at_the_end_and_the_rest_reported(
  logs, tmp_path, capsys
):
  """Among them a name that HTML, Markdown and matplotlib read as markup."""
  log_folders.write_trial(logs, 'fast', 'chess', [(1, 1.0, 1.0)])
  path = log_folders.write_trial(logs, 'third', 'wmt', [], metric='bleu')
  path.write_text('')
  rows = [(10, 1.0, 0.5), (20, 2.0, 0.1)]
  for name in (HOSTILE, '_hidden'):
    log_folders.write_trial(logs, name, 'criteo1tb', rows)
  output = tmp_path / 'out'
  status = _run(logs, '--output', output, f'--baseline={HOSTILE}')
  assert status == command.PROBLEMS_FOUND
  errors = capsys.readouterr().err.splitlines()
  assert errors == [
    'problem: chess: unknown workload, left out. Give its target by --targets.',
    'problem: third/study_0/wmt_pytorch/trial_1: no measurements '
    '(eval_measurements.csv is empty).',
  ]
  assert set(_json(output)['scores']) == {'fast', 'slow', HOSTILE, '_hidden'}
  page = (output / 'report.html').read_text()
  text = (output / 'report.md').read_text()
  for content in (page, text):
    assert content.count('chess: unknown workload') == 1
    assert '<img' not in content
  assert '&lt;img src=x onerror=alert(1)&gt;' in page
  assert re.search(r'&lt;img src=x onerror=alert\(1\)&gt; \$x\$ \\\|', text)


@pytest.mark.parametrize(
  ('arguments', 'reason'),
  [
    (
      ['--baseline=none'],
      r"^Invalid baseline='none'. Must be among fast, slow",
    ),
    (['--what_if=none:x1'], r"^Invalid what_if='none:x1'"),
    (['--what_if=fast:mnist=1'], r"'mnist=1' must be xFACTOR"),
    (['--targets=none.json'], '^Cannot read targets from none.json'),
    (['--gpus=0'], "'0' must be a whole number >= 1"),
    (['--ruleset=none'], 'invalid choice'),
    (['--missed=spent'], r'^Invalid missed\. It has no effect without basel'),
  ],
)
def test_bad_arguments_write_nothing(logs, tmp_path, arguments, reason):
  output = tmp_path / 'out'
  with pytest.raises(InputError, match=reason):
    _run(logs, '--output', output, *arguments)
  assert not output.exists()


def test_no_logs_is_an_error(tmp_path):
  with pytest.raises(InputError, match=r'^Invalid LOGS=.*Must be a directory'):
    _run(tmp_path / 'none', '--output', tmp_path / 'out')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(InputError, match=r'^No logs in .*empty'):
    _run(tmp_path / 'empty', '--output', tmp_path / 'out')
  log_folders.write_trial(tmp_path / 'bad', 'a', 'wmt', []).write_text('')
  with pytest.raises(InputError, match=r'^No trial can be read.*is empty'):
    _run(tmp_path / 'bad', '--output', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_horizons_and_learning_rates_have_figures(tmp_path):
  for trial, horizon in enumerate((0.003, 0.01, 0.03, 0.1), start=1):
    log_folders.write_trial(
      tmp_path / 'logs',
      'ema',
      'criteo1tb',
      [(100 * trial, 1.0 * trial, 0.1)],
      trial=trial,
      hyperparameters={
        'averaging_horizon': horizon,
        'learning_rate': 0.001 * trial,
        'schedule': 'cosine' if trial < 3 else 'constant',
      },
    )
  output = tmp_path / 'out'
  _run(tmp_path / 'logs', '--output', output)
  content = _json(output)
  assert len(content['hyperparameters']['averaging_horizon']) == 4
  assert content['fits']['averaging_horizon'][0]['trials'] == 4
  drawn = {path.stem for path in (output / 'figures').glob('*.png')}
  assert drawn == {*FIGURES, 'averaging_horizon', 'learning_rate', 'schedule'}
