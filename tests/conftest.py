"""Common ground of all tests: seeded, single-threaded, on the CPU."""

import contextlib
import os
import pathlib

# Before torch is imported: two workers on two cores must not fight for them.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import algoperf_outcomes
import code_commit
import pytest
import small_workloads

from lab.run import random_utils

# No test cuts the power. To put each file of a run on the disk takes
# milliseconds, longer beside other work. The descriptor is checked still.
os.fsync = os.fstat

# `make gpu` runs some tests where hypothesis may be missing.
with contextlib.suppress(ImportError):
  import hypothesis

  # A loaded machine makes any example slow: no test fails for its duration.
  hypothesis.settings.register_profile(
    'untimed', deadline=None, derandomize=True
  )
  hypothesis.settings.load_profile('untimed')


@pytest.fixture(autouse=True)
def seeded():
  random_utils.seed_torch(0)


@pytest.fixture
def shrink(monkeypatch):
  """A function that makes a local workload small for the test."""
  return small_workloads.shrinker(monkeypatch)


def pytest_configure(config):
  """Keep outcomes where `make test-algoperf` names a file."""
  path = os.environ.get('WEIGHTAVG_ALGOPERF_MATRIX')
  if path:
    commit = code_commit.commit('tests/algoperf')
    plugin = algoperf_outcomes.Outcomes(pathlib.Path(path), commit)
    config.pluginmanager.register(plugin)
