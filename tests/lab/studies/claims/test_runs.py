"""Runs are described once, and averages follow them without touching them."""

import dataclasses
import json

import pytest
from pages import ROOT

from lab.studies.claims import averages, runs
from lab.studies.claims.averages import EVALUATED, RECOMPUTED
from lab.studies.claims.shelf import Scale, Shelf
from lab.studies.parts import costs
from lab.workloads import build_workload, click_dlrm, glyph_resnet

STEPS = 60
LENGTH = STEPS / click_dlrm.Workload.steps


@pytest.fixture(autouse=True)
def small(shrink):
  """Evaluations of few examples."""
  shrink(click_dlrm.Workload, target=0.0, size=64)
  shrink(glyph_resnet.Workload, target=2.0, size=64)


def short(run, **follows):
  """The run with sixty steps, and evaluations after every twelve."""
  follows = {'candidates': averages.STANDARD, 'evaluated_from': 0.0} | follows
  return dataclasses.replace(
    run, length=LENGTH, follows=follows | {'every': 12}
  )


def test_points_come_from_the_tuned_search_spaces():
  path = ROOT / 'tuning_search_spaces/local/click_dlrm.json'
  (point,) = json.loads(path.read_text())
  assert runs.tuned('click_dlrm', 0).point == point
  fast = runs.at_rate('click_dlrm', 0, 4.0).point
  assert fast == point | {'learning_rate': 4 * point['learning_rate']}
  half = runs.on_schedule('click_dlrm', 0, 'cosine_to_half', 0.5).point
  assert half['schedule'] == 'cosine_to_half'
  assert half['learning_rate'] == point['learning_rate'] / 2


@pytest.mark.parametrize(
  ('length', 'batch_factor', 'steps', 'batch'),
  [(1.0, 1.0, 15_000, 128), (0.5, 0.25, 30_000, 32), (2.0, 4.0, 7_500, 512)],
)
def test_a_run_keeps_its_examples_at_another_batch_size(
  length, batch_factor, steps, batch
):
  run = dataclasses.replace(
    runs.tuned('click_dlrm', 0), length=length, batch_factor=batch_factor
  )
  hint, size = click_dlrm.Workload.steps, click_dlrm.Workload.batch_size
  steps, batch = steps * hint // 15_000, batch * size // 128
  workload = run.build()
  assert (workload.step_hint, workload.batch_size) == (steps, batch)
  assert workload.eval_every_steps == round(0.02 * steps)
  assert build_workload('click_dlrm').step_hint == hint


def test_the_same_description_is_the_same_run():
  same = [
    runs.tuned('click_dlrm', 0),
    runs.at_rate('click_dlrm', 0, 1.0),
    runs.of_length('click_dlrm', 0, 1.0),
    runs.of_batch('click_dlrm', 0, 1.0),
    runs.on_schedule('click_dlrm', 0, 'cosine'),
  ]
  assert len({run.name for run in same}) == 1
  different = [
    same[0],
    runs.tuned('click_dlrm', 1),
    runs.at_rate('click_dlrm', 0, 2.0),
    runs.of_length('click_dlrm', 0, 2.0),
    runs.of_batch('click_dlrm', 0, 2.0),
    runs.on_schedule('click_dlrm', 0, 'constant'),
    runs.on_schedule('click_dlrm', 0, runs.INVERSE_SQRT),
    runs.in_epochs('click_dlrm', 0),
    runs.in_epochs('click_dlrm', 0, 10),
    runs.lookahead('click_dlrm', 0),
    runs.shampoo('click_dlrm', 0),
    *(runs.primal('click_dlrm', 0, name, 1.0) for name in runs.PRIMAL),
  ]
  shelf = Shelf()
  for run in (*same, *different):
    assert shelf.get(run) is None
  assert len(shelf.runs) == len(different)


def test_a_quick_study_shortens_every_run_and_keeps_their_relations():
  scale = Scale(workloads=('click_dlrm',), lengths={'click_dlrm': 0.1}, every=3)
  shelf = Shelf(scale)
  shelf.get(runs.tuned('click_dlrm', 0))
  shelf.get(runs.of_length('click_dlrm', 0, 0.5))
  one, half = shelf.runs
  assert (one.length, half.length) == (0.1, 0.05)
  assert {run.follows['every'] for run in shelf.runs} == {3}


def test_some_evaluations_are_measured_and_the_last_always(tmp_path):
  run = dataclasses.replace(
    short(runs.tuned('click_dlrm', 0)), length=LENGTH * 1.1
  )
  found = run.execute(str(tmp_path))
  assert found['budget_steps'] == 66
  steps = {
    name: [step for step, _, _ in curve]
    for name, curve in found['curves'].items()
  }
  assert set(steps) == set(averages.STANDARD)
  assert set(map(tuple, steps.values())) == {(12, 24, 36, 48, 60, 66)}


def test_what_a_submission_shows_is_measured_beside_averages_of_its_weights(
  tmp_path,
):
  run = short(runs.tuned('click_dlrm', 3))
  plain = run.execute(str(tmp_path / 'plain'))['curves']
  fields = averages.STANDARD['ema 10 %']
  shown = dataclasses.replace(
    run, submission='nadamw_ema', point={**run.point, **fields}
  )
  own = shown.execute(str(tmp_path / 'own'))['curves']
  values = lambda curve: [value for _, _, value in curve]  # noqa: E731
  assert values(own[EVALUATED]) == values(plain['ema 10 %'])
  assert EVALUATED not in plain
  # The submission goes on from its raw weights.
  for name in averages.STANDARD:
    assert values(own[name]) == values(plain[name])
  assert values(plain['raw']) != values(plain['ema 10 %'])


def test_recomputed_statistics_change_no_other_curve(tmp_path):
  run = runs.in_epochs('glyph_resnet', 0)
  run = dataclasses.replace(
    run,
    length=30 / glyph_resnet.Workload.steps,
    follows={**run.follows, 'every': 15},
  )
  follows = {k: v for k, v in run.follows.items() if k != 'recomputed'}
  without = dataclasses.replace(run, follows=follows)
  name = averages.window(averages.WINDOW)
  found = run.execute(str(tmp_path / 'with'))['curves']
  plain = without.execute(str(tmp_path / 'without'))['curves']
  extra = found.pop(f'{name} {RECOMPUTED}')
  for candidate, curve in plain.items():
    assert [v for *_, v in curve] == [v for *_, v in found[candidate]]
  assert [step for step, _, _ in extra] == [15, 30]
  assert [v for *_, v in extra] != [v for *_, v in found[name]]


def test_only_models_with_running_statistics_have_them_recomputed():
  assert 'recomputed' not in runs.in_epochs('click_dlrm', 0).follows
  follows = runs.in_epochs('glyph_resnet', 0).follows
  assert follows['recomputed'] == ['lawa 6 epochs']
  assert 'lawa 6 epochs current' in follows['candidates']


def test_hours_follow_steps_averages_and_evaluations():
  one = costs.hours_of(runs.tuned('stdlib_lm', 0))
  assert costs.hours_of(runs.of_length('stdlib_lm', 0, 4.0)) > 2 * one
  wide, few = runs.tuned('stdlib_lm', 0), runs.at_rate('stdlib_lm', 0, 2.0)
  assert costs.hours_of(few) < one
  steps = 3600 * costs.hours_of(
    dataclasses.replace(wide, follows={**wide.follows, 'evaluated_from': 1.0})
  )
  hint = build_workload('stdlib_lm').step_hint
  assert steps == pytest.approx(costs.STEP['stdlib_lm'] * hint)
  text = costs.describe([wide, few], jobs=2)
  assert text.splitlines()[0].startswith('stdlib_lm: 2 runs, ')
  assert 'All: 2 runs, ' in text
