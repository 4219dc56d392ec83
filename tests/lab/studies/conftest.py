"""Workloads that studies of a few steps run on."""

import pytest
from study_runs import RAW

from lab.studies.parts import training
from lab.studies.parts.averages import Averages
from lab.workloads import click_dlrm


@pytest.fixture
def short(shrink):
  """Trials of twelve steps, evaluated after 4, 6, ... 12."""
  shrink(click_dlrm.Workload, steps=16, eval_every_steps=1, size=32)


@pytest.fixture
def run(shrink):
  """A run of twelve steps with an evaluation after every four."""
  shrink(click_dlrm.Workload, steps=12, eval_every_steps=4, target=0.0)
  return training.Training(
    workload='click_dlrm',
    submission='nadamw',
    point=training.tuned_point('click_dlrm'),
    seed=3,
    follower=Averages,
    follows={'candidates': RAW},
  )
