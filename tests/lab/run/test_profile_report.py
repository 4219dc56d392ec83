"""Breakdown of a run's time."""

import pytest

from lab.run import profile_report


@pytest.fixture
def recorder(monkeypatch):
  recorder = profile_report.NestedRecorder()
  # Not the machine's clock: 20 seconds across a power of two are rounded.
  monkeypatch.setattr(recorder, '_start', 0.0)
  monkeypatch.setattr(recorder, 'clock', lambda: 20.0)
  for name, seconds in [
    ('Swap', 0.5),
    ('Forward and backward', 2.0),
    ('Update parameters', 3.0),
    ('Data selection', 1.0),
    ('Forward and backward', 4.0),
    ('Update parameters', 5.0),
    ('Swap', 0.25),
    ('Prepare for eval', 0.5),
  ]:
    recorder.add(name, seconds)
  return recorder


def test_sections_stand_under_the_one_around_them(recorder):
  report = recorder.report()
  assert report['total_seconds'] == 20.0
  assert [(r['parent'], r['section']) for r in report['sections']] == [
    (None, 'Update parameters'),
    ('Update parameters', 'Forward and backward'),
    ('Update parameters', 'Swap'),
    (None, 'Data selection'),
    (None, 'Prepare for eval'),
    ('Prepare for eval', 'Swap'),
  ]
  update, forward = report['sections'][:2]
  assert update['mean_seconds'] == 4.0
  assert update['std_seconds'] == 1.0
  assert update['calls'] == 2
  assert update['percent'] == 40.0
  assert forward['total_seconds'] == 6.0


def test_seconds_add_up_over_parents(recorder):
  report = recorder.report()
  assert profile_report.seconds(report, 'Swap') == 0.75
  assert profile_report.seconds(report, 'Swap', 'Data selection') == 1.75
  assert profile_report.seconds(report, 'Averaging') == 0.0


def test_table_indents_inner_sections(recorder):
  lines = profile_report.table(recorder.report()).splitlines()
  assert lines[2].split() == ['Total', '20.000', '100.00']
  assert lines[3].startswith('Update parameters ')
  assert lines[3].split()[-4:] == ['1', '2', '8.000', '40.00']
  assert lines[4].startswith('  Forward and backward ')
  assert max(map(len, lines)) <= 81
