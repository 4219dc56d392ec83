"""Corrected averages: their arithmetic, and that they leave training alone."""

import argparse

import pytest
import torch
from study_runs import flat_weights, lines, result

from lab.run import from_python
from lab.run.observers import Observer
from lab.studies import bema
from lab.studies.parts import corrected
from lab.studies.parts.corrected import Corrected
from lab.workloads import build_workload, stdlib_lm

STEPS = 60


class Raw(Observer):
  """Keeps the trained weights of each step, from the start on."""

  def at_start(self, run):
    self.seen = [flat_weights(run)]

  def after_step(self, run):
    self.seen.append(flat_weights(run))

  def instead_of_evaluation(self, run, rng):
    assert torch.equal(flat_weights(run), self.seen[-1])
    return True


class Seen(Corrected):
  """Keeps the weights that are measured, too."""

  def __init__(self, *args):
    super().__init__(*args)
    self.shown = {}

  def _measure(self, name, timed_as, run, rng):
    self.shown[name] = flat_weights(run)
    super()._measure(name, timed_as, run, rng)

  def instead_of_evaluation(self, run, rng):
    done = super().instead_of_evaluation(run, rng)
    for name, averager in self._averagers.items():
      with averager.evaluating():
        self.shown[name] = flat_weights(run)
    return done


def train(folder, run, *observers):
  from_python.train(
    build_workload('stdlib_lm'),
    run.submission_path,
    dict(run.point),
    0,
    str(folder),
    list(observers),
    STEPS,
  )


def test_corrections_are_those_of_the_formulas(shrink, tmp_path, monkeypatch):
  monkeypatch.setattr(corrected, 'EVERY', 3 / STEPS)
  shrink(stdlib_lm.Workload, steps=STEPS, eval_every_steps=20)
  options = argparse.Namespace(workloads=['stdlib_lm'], seeds=[0])
  (run,) = bema.trainings(options)
  alone, beside, seen = Raw(), Raw(), Seen(*run.follows.values())
  train(tmp_path / 'alone', run, alone)
  train(tmp_path / 'beside', run, seen, beside)
  for one, other in zip(alone.seen, beside.seen, strict=True):
    assert torch.equal(one, other)
  assert set(seen.findings()['curves']) == {*bema.SHOWN}
  w = [x.double() for x in alone.seen]
  for name, fraction in bema.LAGS.items():
    lag = fraction * STEPS
    # Snapshots are three steps apart.
    then = max(3, 3 * int((STEPS - 2 * lag) / 3))
    missed = lag * (w[-1] - w[then]) / (STEPS - then) if then < STEPS else 0.0
    for factor in bema.FACTORS:
      torch.testing.assert_close(
        seen.shown[f'{name} + {factor:g}'].double(),
        seen.shown[name].double() + factor * missed,
        rtol=1e-5,
        atol=1e-6,
      )
  ema = w[0]
  for step in range(3, STEPS + 1, 3):
    ema = ema + (w[step] - ema) / (10 + step) ** 0.5
  for eta in bema.ETAS:
    torch.testing.assert_close(
      seen.shown[f'bema {eta:g}'].double(),
      ema + (w[-1] - w[0]) / (10 + STEPS) ** eta,
      rtol=1e-5,
      atol=1e-6,
    )


def test_an_ema_lags_by_its_memory_but_one_sample():
  assert bema.LAGS['ema 1 %'] == pytest.approx(0.008)
  assert bema.LAGS['ema 10 %'] == pytest.approx(0.095)


def test_rows_and_the_table():
  curve = [[s, 1.0, s / 100] for s in range(30, 101, 2)]
  later = [[s, 1.0, s / 200] for s in range(30, 101, 2)]
  late = [[s, 1.0, s / 120] for s in range(30, 101, 2)]
  curves = {name: curve for name in bema.SHOWN}
  curves |= {'ema 3 %': late, 'ema 3 % + 1': later}
  rows = bema.rows_of([result(curves, higher_is_better=True)])
  assert tuple(rows[0]) == bema.COLUMNS
  assert tuple(bema.STUDY.committed('bema.json')[0]) == bema.COLUMNS
  header, *found = lines(bema.table(rows))
  assert [line[1] for line in found] == [*bema.SHOWN]
  by_name = {line[1]: dict(zip(header, line, strict=True)) for line in found}
  assert by_name['raw']['steps to target over raw'] == '1.00'
  assert by_name['ema 3 %']['steps to target over raw'] == '1.20'
  assert by_name['ema 3 % + 1']['steps to target over raw'] == '2.00'
  assert by_name['ema 3 % + 1']['at 0.6 T'] == '0.3000'


@pytest.mark.parametrize('at', [0, 3, 7, 100])
def test_the_last_snapshot_at_or_before_a_step_is_taken(at):
  follower = Corrected({}, {}, (), ())
  follower._snapshots.extend((step, []) for step in (2, 4, 6))
  assert follower._before(at)[0] == {0: 2, 3: 2, 7: 6, 100: 6}[at]
