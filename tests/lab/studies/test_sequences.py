"""x, y, z and averages of y along one run, and the table of them."""

import argparse
import itertools
import math

import pytest
import torch
from study_runs import curve, flat_weights, lines, result

from lab.run import from_python
from lab.run.observers import Observer
from lab.studies import sequences
from lab.studies.parts.methods import NADAMW_AT_AVERAGE
from lab.studies.parts.sequences import Sequences
from lab.studies.parts.shown import Shown
from lab.workloads import build_workload, click_dlrm, glyph_resnet

NAN = math.nan


class Held(Observer):
  """Keeps the trained weights of each step and what each evaluation shows."""

  def __init__(self):
    self.trained, self.shown = [], []

  def after_step(self, run):
    self.trained.append(flat_weights(run))

  def instead_of_evaluation(self, run, rng):
    self.shown.append(flat_weights(run))
    return True


class Seen(Sequences):
  """Keeps the weights that are measured, too."""

  def __init__(self, *args):
    super().__init__(*args)
    self.weights = {}

  def instead_of_evaluation(self, run, rng):
    if run.state.global_step >= 40:
      # What training goes on from.
      averager = run.state.optimizer_state['averager']
      averager.swap_out()
      self.weights.setdefault('y', []).append(flat_weights(run))
      averager.swap_in()
    return super().instead_of_evaluation(run, rng)

  def _measure(self, name, run, rng):
    self.weights.setdefault(name, []).append(flat_weights(run))
    if name == 'z':
      primal = run.state.optimizer_state['averager'].placement
      self.z = torch.cat([z.flatten().clone() for z in primal._other])
    super()._measure(name, run, rng)


@pytest.mark.parametrize('method', NADAMW_AT_AVERAGE)
@pytest.mark.parametrize(
  'workload',
  ['click_dlrm', pytest.param('glyph_resnet', marks=pytest.mark.slow)],
)
def test_x_y_and_z_are_measured_and_training_is_left_alone(
  method, workload, shrink, tmp_path
):
  module = {'click_dlrm': click_dlrm, 'glyph_resnet': glyph_resnet}[workload]
  shrink(module.Workload, steps=80, eval_every_steps=20)
  options = argparse.Namespace(
    workloads=[workload], seeds=[0], methods=[method]
  )
  (run,) = sequences.trainings(options)
  seen = Seen(*run.follows.values())
  alone, beside, shown = Held(), Held(), Shown(0.3)

  def train(folder, *observers):
    from_python.train(
      build_workload(workload),
      run.submission_path,
      dict(run.point),
      0,
      str(tmp_path / folder),
      list(observers),
      80,
    )

  train('alone', alone, shown)
  train('beside', seen, beside)
  for one, other in zip(alone.trained, beside.trained, strict=True):
    assert torch.equal(one, other)
  for one, other in zip(alone.shown, beside.shown, strict=True):
    assert torch.equal(one, other)
  found = seen.findings()['curves']
  assert set(found) == {*sequences.CANDIDATES}
  # x is, bit for bit, what the submission shows.
  assert [p[::2] for p in found['x']] == [
    p[::2] for p in shown.findings()['curves']['shown']
  ]
  assert [p[0] for p in found['z']] == [40, 60, 80]
  x, y, z = (seen.weights[name][-1] for name in ('x', 'y', 'z'))
  assert torch.equal(x, alone.shown[-1])
  assert torch.equal(y, alone.trained[-1])
  # z is computed from x and y, whose rounding 1 / (1 - mu) enlarges.
  torch.testing.assert_close(z, seen.z, rtol=1e-4, atol=1e-5)
  assert not torch.allclose(x, z)


def test_the_best_in_hindsight_is_the_best_at_each_evaluation():
  arrives = {'x': 80, 'y': 90, 'z': None, 'ema 3 %': 70}
  runs = [
    result(
      {n: curve(a and a + later) for n, a in arrives.items()},
      seed=seed,
      method=method,
    )
    for seed, method, later in ((0, 'm', 0), (1, 'm', 4), (0, 'n', 10))
  ]
  rows = sequences.rows_of(runs)
  assert tuple(rows[0]) == sequences.COLUMNS
  committed = sequences.STUDY.committed('sequences.json')
  assert tuple(committed[0]) == sequences.COLUMNS
  # Ratios are to x of the same run.
  assert [r['ratio_to_x'] for r in rows if r['candidate'] == 'x'] == 3 * [1.0]
  by_name = {row['candidate']: row for row in rows if row['method'] == 'n'}
  assert by_name['best of all']['steps_to_target'] == 80
  assert by_name['y']['ratio_to_x'] == 100 / 90
  rows = [row for row in rows if row['method'] == 'm']
  header, *found = lines(sequences.table(rows))
  assert [line[1] for line in found] == ['w', 'all runs']
  shown = dict(zip(header, found[1], strict=True))
  assert (shown['x'], shown['y'], shown['z']) == ('1.00', '1.12', '–')
  assert shown['best of all'] == '0.88'


def test_the_best_in_hindsight_has_the_direction_of_the_metric():
  run = result(
    {'x': [[2, 1.0, 0.3]], 'y': [[2, 1.0, 0.4]]},
    method='m',
    higher_is_better=True,
  )
  rows = sequences.rows_of([run])
  assert rows[-1]['best_validation'] == 0.4


@pytest.mark.parametrize('order', [*itertools.permutations((72, 88, None))])
def test_a_run_that_never_arrives_is_later_than_any_other(order):
  runs = [
    result({'x': curve(80), 'z': curve(at)}, seed=seed, method='m')
    for seed, at in enumerate(order)
  ]
  header, *found = lines(sequences.table(sequences.rows_of(runs)))
  assert dict(zip(header, found[0], strict=True))['z'] == '1.10'


def test_where_x_never_arrives_a_ratio_is_that_to_the_budget():
  runs = [
    result({'x': curve(None), 'z': curve(72)}, seed=seed, method='m')
    for seed in range(3)
  ]
  header, *found = lines(sequences.table(sequences.rows_of(runs)))
  shown = dict(zip(header, found[0], strict=True))
  assert (shown['x'], shown['z']) == ('–', '0.72')


@pytest.mark.parametrize('values', [*itertools.permutations((NAN, 0.3, 0.4))])
def test_a_value_that_is_not_finite_is_never_the_best(values):
  curves = {n: [[2, 1.0, v]] for n, v in zip('xyz', values, strict=True)}
  rows = sequences.rows_of([result(curves, method='m')])
  assert rows[-1]['best_validation'] == 0.3
