"""The study of both frameworks."""

import argparse

import pytest
from jax_support import import_jax
from study_runs import curve, lines, result

from lab.core.errors import InputError
from lab.studies import frameworks
from lab.studies.parts.shown import SHOWN
from lab.workloads import stdlib_lm

import_jax('jax')


def runs():
  options = argparse.Namespace(workloads=['stdlib_lm'], seeds=[0])
  return {
    (run.columns['submission'], run.columns['framework']): run
    for run in frameworks.trainings(options)
  }


@pytest.mark.slow
def test_both_frameworks_train_alike(shrink, tmp_path):
  shrink(stdlib_lm.Workload, steps=6, eval_every_steps=3, target=0.0)
  found = runs()
  assert len({run.name for run in found.values()}) == 4
  (ours, theirs) = (
    found['nadamw_ema', framework].execute(str(tmp_path / framework))
    for framework in ('pytorch', 'jax')
  )
  steps = [step for step, *_ in ours['curves'][SHOWN]]
  assert steps == [3, 6]
  # float32's rounding; the tuned point may have dropout.
  for one, other in zip(
    ours['curves'][SHOWN], theirs['curves'][SHOWN], strict=True
  ):
    assert one[2] == pytest.approx(other[2], rel=1e-2)


def test_a_workload_without_a_twin_is_refused():
  options = argparse.Namespace(workloads=['click_dlrm'], seeds=[0])
  with pytest.raises(InputError, match=r"='click_dlrm'. Must be among"):
    frameworks.trainings(options)


def test_table_has_median_and_range_of_both():
  results = [
    result(
      {SHOWN: curve(at)}, seed=seed, submission='nadamw', framework=framework
    )
    for framework, arrivals in {
      'pytorch': (60, 70, 80),
      'jax': (64, None, None),
    }.items()
    for seed, at in enumerate(arrivals)
  ]
  (line,) = lines(frameworks.table(frameworks.rows_of(results)))[1:]
  assert line == [
    '`w`',
    '`nadamw`',
    '0.70 (0.60 to 0.80)',
    'not reached (0.64 to not reached)',
    '3',
  ]
