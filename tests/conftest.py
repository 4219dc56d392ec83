"""Common ground of all tests: seeded, single-threaded, on the CPU."""

import json
import os
import pathlib

# Before torch is imported: two workers on two cores must not fight for them.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
  torch.manual_seed(0)


# What `make test-algoperf` keeps for the README's table.
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
