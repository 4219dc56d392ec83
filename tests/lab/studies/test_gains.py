"""Rows, correlations and the figure of the study of gains."""

import argparse
import json
import math

import numpy as np
import pytest
from study_runs import lines

from lab.studies import gains, steps
from lab.studies.parts import levels
from lab.workloads import build_workload

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


@pytest.mark.slow
def test_long_runs_are_four_times_the_step_hint():
  options = argparse.Namespace(workloads=['stdlib_lm'], seeds=[0, 1])
  runs = gains.trainings(options)
  long = [run for run in runs if run.budget_factor > 1]
  assert [run.budget_factor for run in long] == [4, 4]
  assert long[0].point == steps.runs('stdlib_lm', 'nadamw', 0)[0].point
  # The others are those of `steps`, whose finished runs are shared.
  usual = argparse.Namespace(
    workloads=steps.STUDY.workloads,
    seeds=steps.STUDY.seeds,
    optimizers=['nadamw'],
  )
  raw = [
    run.name
    for run in steps.trainings(usual)
    if 'raw' in run.columns['tuned_for'].split(', ')
  ]
  assert [run.name for run in runs[: -len(long)]] == raw


def run_of(speed, times=1, seed=0):
  """A run whose averages are `speed` times as fast as the raw weights."""
  hint = build_workload('stdlib_lm').step_hint
  steps_of = [times * hint * s // 100 for s in range(30, 101, 2)]
  at = [s / (times * hint) for s in steps_of]
  curves = {name: [1 - speed * a / 2 for a in at] for name in gains.SHOWN}
  curves |= {'raw': [1 - a / 2 for a in at]}
  return {
    'workload': 'stdlib_lm',
    'optimizer': 'nadamw',
    'tuned_for': 'raw',
    'seed': seed,
    'budget_steps': times * hint,
    'higher_is_better': False,
    'curves': {
      name: [[s, 1.0, v] for s, v in zip(steps_of, values, strict=True)]
      for name, values in curves.items()
    },
  }


def test_every_level_of_a_run_has_a_ratio():
  runs = [run_of(1.25), run_of(1.25, seed=1), run_of(2.0, times=4)]
  rows = gains.places_of(runs)
  assert [row['length'] for row in rows[:: len(gains.SHOWN)]] == [1, 1, 4]
  assert rows[0]['places'] == list(gains.PLACES)
  at = dict(zip(rows[0]['places'], rows[0]['ratios'], strict=True))
  assert at[0.6] == pytest.approx(0.8)
  assert at[1.0] == pytest.approx(0.8)
  # The first evaluation, at 0.3 T, is where a faster average is seen first.
  at = dict(zip(rows[-1]['places'], rows[-1]['ratios'], strict=True))
  assert at[0.8] == pytest.approx(0.5)
  assert at[0.5] == pytest.approx(0.6)
  # Only long runs are in long.json.
  long = gains.long_of(runs)
  assert {row['budget_steps'] for row in long} == {runs[2]['budget_steps']}
  assert len(long) == len(levels.FRACTIONS) * len(gains.SHOWN)


def test_the_median_over_seeds_is_infinite_where_most_never_arrive():
  slow = [run_of(0.5, seed=seed) for seed in (0, 1)]
  rows = gains.places_of([*slow, run_of(1.25, seed=2)])
  medians = gains._by_place(rows)
  (late,) = medians[
    (medians['place'] == 0.9) & (medians['candidate'] == 'ema 1 %')
  ]['ratio']
  assert late == math.inf


def copy_places(folder):
  """The figure reads them beside itself."""
  places = gains.STUDY.committed('places.json')
  (folder / 'places.json').write_text(json.dumps(places))


def test_tables_and_figure_of_the_committed_rows(tmp_path):
  rows = gains.STUDY.committed('trials.json')
  assert {row['workload'] for row in rows} >= {'stdlib_lm'}
  assert len(lines(gains.table(rows))) > len(gains.SHOWN)
  long = gains.STUDY.committed('long.json')
  assert len(lines(gains.long_table(long))) == 1 + 2 * len(gains.SHOWN)
  copy_places(tmp_path)
  gains.draw(rows, tmp_path / 'g.png')
  assert (tmp_path / 'g.png').stat().st_size > 10_000


def test_the_figure_has_long_runs_and_averages_that_never_arrive(
  tmp_path, monkeypatch
):
  shown = []
  monkeypatch.setattr(gains.plots, 'save', lambda f, path: shown.append(f))
  rows = gains.STUDY.committed('trials.json')
  copy_places(tmp_path)
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
  dashed = [line for line in top[2].lines if line.get_linestyle() == '--']
  assert max(np.isfinite(line.get_ydata()).sum() for line in dashed) > 20
