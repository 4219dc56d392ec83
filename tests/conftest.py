"""Common ground of all tests: seeded, single-threaded, on the CPU."""

import json
import os
import pathlib

# Before torch is imported: two workers on two cores must not fight for them.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import hypothesis
import pytest
import torch

# A loaded machine makes any example slow: no test fails for its duration.
hypothesis.settings.register_profile('untimed', deadline=None)
hypothesis.settings.load_profile('untimed')


@pytest.fixture(autouse=True)
def seeded():
  torch.manual_seed(0)


@pytest.fixture
def shrink(monkeypatch):
  """A function that makes a local workload small for the test.

  It sets public attributes of the class: few evaluation examples, and where
  they are given the number of steps, the distance of evaluations in steps and
  the targets.
  """

  def apply(workload, steps=None, eval_every_steps=None, target=None, size=32):
    changes = {
      'sizes': {'eval_train': size, 'validation': size, 'test': size},
      'evaluation_batch_size': size,
      'step_hint': steps,
      'eval_every_steps': eval_every_steps,
      'validation_target_value': target,
      'test_target_value': target,
    }
    for name, value in changes.items():
      if value is not None:
        monkeypatch.setattr(workload, name, value)

  return apply


# What `make test-algoperf` keeps for the documentation's table.
_MATRIX = os.environ.get('WEIGHTAVG_ALGOPERF_MATRIX')
_outcomes = {}


def pytest_runtest_logreport(report):
  """Note how a test of the real benchmark ended."""
  ended = report.when == 'call' or report.failed
  if _MATRIX and ended and 'algoperf' in report.keywords:
    name = report.nodeid.rpartition('::')[2]
    _outcomes[name] = {'outcome': report.outcome, 'torch': torch.__version__}


def pytest_sessionfinish():
  """Add what has run now to what has run before."""
  if not _outcomes:
    return
  path = pathlib.Path(_MATRIX)
  known = json.loads(path.read_text()) if path.exists() else {}
  path.parent.mkdir(parents=True, exist_ok=True)
  merged = dict(sorted((known | _outcomes).items()))
  path.write_text(json.dumps(merged, indent=2) + '\n')
