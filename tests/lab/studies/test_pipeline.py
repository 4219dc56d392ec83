"""Runs are kept by content; rows follow from curves."""

import dataclasses
import json
import math

import pandas as pd
import pytest
from study_runs import RAW, curve, result

from lab.studies.parts import execution, frame, goals, plots, training
from lab.studies.parts.averages import Averages
from lab.workloads import click_dlrm


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
