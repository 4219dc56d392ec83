"""Rows, correlations and the figure of the study of gains."""

import argparse

import pytest
from study_runs import lines

from lab.studies import gains, steps
from lab.studies.parts import levels

STEPS = list(range(30, 101, 2))


def trial(number, rate, beta, speed, stopped=None):
  """A trial whose averages are `speed` times as fast as the raw weights."""
  falling = [1 - s / 200 for s in STEPS]
  curves = {name: [1 - speed * s / 200 for s in STEPS] for name in gains.SHOWN}
  return {
    'trial': number,
    'point': {'learning_rate': rate, 'one_minus_beta1': 1 - beta},
    'budget_steps': 100,
    'stopped': stopped,
    'best': {'raw': 0.5},
    'steps': STEPS,
    'curves': curves | {'raw': falling},
  }


RECORD = {'workload': 'w', 'higher_is_better': False}


def test_rows_are_those_of_whole_trials():
  trials = [trial(0, 0.1, 0.9, 1.25), trial(1, 0.1, 0.9, 1.25, stopped=30)]
  rows = gains.trial_rows(RECORD, trials)
  assert [row['fraction'] for row in rows] == list(levels.FRACTIONS)
  assert {row['trial'] for row in rows} == {0}
  # Ten steps of memory in a run of 100.
  assert rows[0]['memory'] == pytest.approx(0.1)
  assert rows[3]['ratios']['ema 5 %'] == pytest.approx(0.8)


def test_table_correlates_ratios_with_memory_and_rate():
  # The shorter the memory and the lower the rate, the faster the average.
  betas = (0.95, 0.9, 0.8, 0.5)
  trials = [
    trial(n, 0.1 * (n + 1), beta, 1.5 - 0.1 * n)
    for n, beta in enumerate(reversed(betas))
  ]
  (line, *_) = lines(gains.table(gains.trial_rows(RECORD, trials)))[1:]
  assert line[:3] == ['w', '4', 'ema 1 %']
  assert [cell.split()[0] for cell in line[4:]] == ['+1.00', '+1.00']
  trials[0]['point']['learning_rate'] = 0.5
  (line, *_) = lines(gains.table(gains.trial_rows(RECORD, trials)))[1:]
  assert [cell.split()[0] for cell in line[4:]] == ['+1.00', '-0.20']


def test_long_runs_are_four_times_the_step_hint():
  options = argparse.Namespace(workloads=['stdlib_lm'], seeds=[0, 1])
  runs = gains.trainings(options)
  assert [run.budget_factor for run in runs] == [4, 4]
  assert runs[0].point == steps.runs('stdlib_lm', 'nadamw', 0)[0].point


def test_tables_and_figure_of_the_committed_rows(tmp_path):
  rows = gains.STUDY.committed('trials.json')
  assert {row['workload'] for row in rows} >= {'stdlib_lm'}
  assert len(lines(gains.table(rows))) > len(gains.SHOWN)
  long = gains.STUDY.committed('long.json')
  assert len(lines(gains.long_table(long))) == 1 + 2 * len(gains.SHOWN)
  gains.draw(rows, tmp_path / 'g.png')
  assert (tmp_path / 'g.png').stat().st_size > 10_000


def test_the_figure_has_long_runs_and_averages_that_never_arrive(
  tmp_path, monkeypatch
):
  shown = []
  monkeypatch.setattr(gains.plots, 'save', lambda f, path: shown.append(f))
  rows = gains.STUDY.committed('trials.json')
  gains.draw(rows, tmp_path / 'g.png')
  top = shown[0].axes[:3]
  at_level = [r for r in rows if r['fraction'] == gains.FRACTION]
  for axes in top[:2]:
    filled = [
      line for line in axes.lines if line.get_markerfacecolor() != 'none'
    ]
    drawn = sum(len(line.get_xdata()) for line in filled if line.get_marker())
    never = [r for r in at_level if r['ratios']['ema 5 %'] is None]
    assert drawn == len(never) + 2  # and the line at 1
    assert never
  assert sum(line.get_linestyle() == '--' for line in top[2].lines) >= 1
