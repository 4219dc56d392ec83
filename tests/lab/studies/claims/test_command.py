"""The command from its runs to its page: made once, resumed, reported again."""

import json

import pytest
from lab_commands import outcome
from study_runs import lines

from lab.core.errors import InputError
from lab.studies.claims import command, report, rows, runs, statistics
from lab.studies.claims.shelf import Scale
from lab.workloads import click_dlrm


@pytest.fixture
def tiny(monkeypatch):
  """A quick study of two runs of ninety steps; each is looked at twice."""
  length = 90 / click_dlrm.Workload.steps
  scale = Scale(
    workloads=('click_dlrm',),
    most_seeds=2,
    lengths={'click_dlrm': length},
    every=20,
  )
  monkeypatch.setattr(command, 'QUICK', scale)


def call(folder, *arguments):
  command.main(['--quick', f'--output_dir={folder}', *arguments])


def read(folder):
  return json.loads((folder / command.ROWS).read_text())


def stamps(folder):
  paths = (folder / 'runs').glob('*.json')
  return {path.name: path.stat().st_mtime_ns for path in paths}


def test_from_runs_to_rows_and_on_from_there(tiny, tmp_path, capsys):
  folder = tmp_path / 'out'
  call(folder, '--only=j,b', '--jobs=1')
  printed = capsys.readouterr()
  assert 'All: 2 runs, ' in printed.err
  assert '[2/2] click_dlrm_nadamw_1_' in printed.err
  found = read(folder)
  assert [row['claim'] for row in found] == ['b', 'j']
  (share, _) = found[1]['parts']
  assert [effect[:2] for effect in share['effects']] == [
    ['click_dlrm', 0],
    ['click_dlrm', 1],
  ]
  assert share['median'] > 0
  assert found[1]['verdict'] in (statistics.HOLDS, statistics.FAILS,
                                 statistics.UNDECIDED)  # fmt: skip
  page = (folder / command.PAGE).read_text()
  assert report.table(found) in page
  assert (folder / command.FIGURE).stat().st_size > 5_000

  # Another claim on the same runs makes none, and keeps the rows.
  before = stamps(folder)
  assert len(before) == 2
  call(folder, '--only=a', '--jobs=1')
  assert stamps(folder) == before
  assert [row['claim'] for row in read(folder)] == ['a', 'b', 'j']

  # Resumed, the study makes the missing run alone.
  gone = sorted(before)[0]
  (folder / 'runs' / gone).unlink()
  capsys.readouterr()
  call(folder, '--only=a,b', '--dry_run')
  shown = capsys.readouterr().out
  assert shown.startswith('2 runs, of which are missing:')
  assert 'All: 1 runs, ' in shown
  call(folder, '--only=a,b', '--jobs=1')
  after = stamps(folder)
  assert {name for name in after if after[name] != before[name]} == {gone}

  # From the rows alone.
  text = (folder / command.ROWS).read_text()
  for path in (folder / 'runs').glob('*.json'):
    path.unlink()
  capsys.readouterr()
  call(folder, '--only=b', '--report_only')
  assert (folder / command.ROWS).read_text() == text
  assert report.table(read(folder)[1:2]) in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_other_claims_measured(
  tiny, tmp_path, monkeypatch
):
  wrong = {'nadamw_ema': {'weight_decay': -1.0}}
  monkeypatch.setattr(runs, 'PRIMAL', wrong)
  with pytest.raises(ValueError, match=r'Invalid weight_decay=-1.0'):
    call(tmp_path, '--only=j,m', '--jobs=1')
  measured, missing = read(tmp_path)
  assert (measured['claim'], measured['reason']) == ('j', None)
  assert (missing['claim'], missing['verdict']) == ('m', 'not measured')
  assert missing['reason'] == 'Some of its runs are not finished.'


def test_a_dry_run_counts_and_writes_nothing(tiny, tmp_path, capsys):
  call(tmp_path / 'out', '--only=a', '--dry_run', '--jobs=4')
  assert '2 runs, of which are missing:' in capsys.readouterr().out
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--only=zz'], "Invalid only='zz'. Must be all or among a, b, "),
    (['--only=a,a'], 'Invalid only=a,a. a is given twice.'),
    (['--jobs=0'], 'Invalid jobs=0. Must be in'),
    (['--fast'], 'unrecognized arguments: --fast'),
    (['--report_only'], 'No finished run of these claims is in '),
  ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(
  arguments, message, tmp_path
):
  folder = tmp_path / 'out'
  status, errors = outcome(
    'lab.studies', ['claims', f'--output_dir={folder}', *arguments]
  )
  assert status == 1
  assert len(errors.splitlines()) == 1
  assert errors.startswith(f'error: {message}')
  assert not folder.exists()


@pytest.mark.parametrize('text', ['[{"claim": "a"', '{}', '[{"x": 1}]'])
def test_rows_that_are_no_rows_are_not_overwritten(text, tiny, tmp_path):
  (tmp_path / command.ROWS).write_text(text)
  with pytest.raises(
    InputError, match=r'Invalid .*claims.json. Must be a JSON'
  ):
    call(tmp_path, '--only=j', '--jobs=1')
  assert (tmp_path / command.ROWS).read_text() == text
  assert not (tmp_path / 'runs').exists()


def part(**changes):
  """A part's row."""
  return {
    'text': 'EMA',
    'unit': 'ratio',
    'median': 0.8,
    'low': 0.7,
    'high': 0.9,
    'claimed': [None, 1.0],
    'on_each': False,
    'decides': True,
    'verdict': 'holds',
    'seeds': 5,
    'runs': 20,
    'by_workload': {'p': 0.75, 'q': 0.85},
    'verdicts': {'p': 'holds', 'q': 'holds'},
  } | changes


def claim_row(*parts, **changes):
  """A claim's row."""
  return {
    'claim': 'a',
    'text': 'Averages are fast',
    'source': 'Someone 2025',
    'url': 'https://example.org',
    'where': 'Table 1',
    'figure': '0.8',
    'how': 'Ratios.',
    'verdict': 'holds',
    'reason': None,
    'seeds': 5,
    'workloads': ['p', 'q'],
    'command': 'python -m lab.studies claims --only=a',
    'parts': list(parts),
  } | changes


@pytest.mark.parametrize(
  ('changes', 'text'),
  [
    ({}, '0.80 (0.70 to 0.90)'),
    ({'unit': 'fraction'}, '+80.0 (+70.0 to +90.0) %'),
    ({'unit': 'spreads'}, '+0.8 (+0.7 to +0.9) spreads'),
    ({'unit': 'horizon', 'median': 0.01}, '1.0 (70.0 to 90.0) %'),
    ({'low': None}, '0.80'),
    ({'median': None}, '–'),
  ],
)
def test_a_measurement_is_a_median_with_its_interval(changes, text):
  assert report.measured(part(**changes)) == text


def test_tables_show_deciding_parts():
  extra = part(text='LAWA', decides=False)
  each = part(text='EMA everywhere', on_each=True)
  row = claim_row(part(), each, extra)
  (_, line) = lines(report.table([row]))
  assert line == [
    'a',
    'Averages are fast',
    '[Someone 2025](https://example.org), Table 1',
    '0.8',
    'EMA: 0.80 (0.70 to 0.90)<br>EMA everywhere: 0.75 to 0.85 by workload',
    '**holds**',
    '5 x 2',
    '`python -m lab.studies claims --only=a`',
  ]
  (_, short) = lines(report.short_table([row]))
  assert short[2:] == ['0.80 (0.70 to 0.90)', 'holds', '5 x 2']
  own = report.section(row)
  assert (
    'Averages are fast ([Someone 2025](https://example.org), Table 1).' in own
  )
  _, *parts = lines(own[own.index('| part') :])
  assert [line[-1] for line in parts] == ['holds', 'holds', '(holds)']
  assert parts[0][2:5] == ['0.75', '0.85', '20']


def test_workloads_on_which_a_claim_does_not_hold_are_named():
  mixed = {'p': 'undecided', 'q': 'does not hold', 'r': 'undecided'}
  each = part(text='EMA', on_each=True, verdicts=mixed)
  row = claim_row(part(), each, verdict='does not hold')
  (_, line) = lines(report.table([row]))
  assert line[4].endswith(
    'EMA: 0.75 to 0.85 by workload (does not hold: q; undecided: p, r)'
  )
  (_, short) = lines(report.short_table([row]))
  assert short[2:] == ['0.80 (0.70 to 0.90)', 'does not hold (q)', '5 x 2']


def test_what_is_not_measured_says_why():
  row = claim_row(verdict='not measured', reason='There is none.', seeds=0)
  assert lines(report.table([row]))[1][4] == 'There is none.'
  assert 'Not measured: There is none.' in report.section(row)


def test_figures_show_verdicts_and_the_curve(tmp_path):
  found = [
    claim_row(
      part(),
      part(verdict='undecided', low=None, high=None),
      part(unit='fraction', claimed=[-0.1, 0.1], verdict='does not hold'),
    ),
    claim_row(
      *(
        part(
          unit='fraction',
          decides=False,
          axis=axis,
          factor=factor,
          average=average,
        )
        for axis in ('batch size', 'learning rate', 'length of training')
        for factor in (0.5, 1.0, 2.0)
        for average in ('best', 'ema 1 %')
      ),
      claim='noise',
    ),
  ]
  report.draw(found, tmp_path / 'claims.png')
  report.draw_noise(found, tmp_path / 'noise.png')
  for name in ('claims.png', 'noise.png'):
    assert (tmp_path / name).stat().st_size > 10_000
  report.draw_noise(found[:1], tmp_path / 'none.png')
  assert not (tmp_path / 'none.png').exists()


def test_new_rows_replace_those_of_the_same_claims():
  old = [claim_row(claim=name, verdict='undecided') for name in ('a', 'noise')]
  new = [claim_row(claim=name) for name in ('a', 'b')]
  found = rows.merged(new, old)
  assert [(row['claim'], row['verdict']) for row in found] == [
    ('a', 'holds'),
    ('b', 'holds'),
    ('noise', 'undecided'),
  ]
  # A few runs of a fresh clone do not replace what is committed.
  unfinished = [claim_row(claim='a', verdict=statistics.NOT_MEASURED)]
  assert rows.merged(unfinished, old) == old
  assert rows.merged(unfinished, []) == unfinished
