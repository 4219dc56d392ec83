"""Common ground of all tests: seeded, single-threaded, on the CPU."""

import json
import os
import pathlib
import subprocess

# Before torch is imported: two workers on two cores must not fight for them.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import hypothesis
import pytest
import torch

# A loaded machine makes any example slow: no test fails for its duration.
hypothesis.settings.register_profile('untimed', deadline=None, derandomize=True)
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


# `make test-algoperf` names the file that keeps outcomes for the docs' table.
_MATRIX = os.environ.get('WEIGHTAVG_ALGOPERF_MATRIX')
_outcomes = {}


def _commit():
  """Commit of the code; `-dirty` if a file outside results/ differs from it."""

  def git(*words):
    here = pathlib.Path(__file__).parents[1]
    return subprocess.run(['git', *words], cwd=here, capture_output=True)

  commit = git('rev-parse', '--short=12', 'HEAD').stdout.decode().strip()
  is_clean = git('diff', '--quiet', 'HEAD', '--', ':!results').returncode == 0
  return commit if is_clean else f'{commit}-dirty'


def pytest_runtest_logreport(report):
  """Record the outcome of a test of the real benchmark."""
  ended = report.when == 'call' or report.outcome != 'passed'
  if _MATRIX and ended and 'algoperf' in report.keywords:
    name = report.nodeid.rpartition('::')[2]
    _outcomes[name] = {'outcome': report.outcome, 'torch': torch.__version__}
    if report.skipped:
      _outcomes[name]['reason'] = report.longrepr[2]


def pytest_sessionfinish():
  """Merge the outcomes into the file, which keeps those of one commit only."""
  if not _outcomes:
    return
  commit = _commit()
  path = pathlib.Path(_MATRIX)
  known = json.loads(path.read_text()) if path.exists() else {}
  if known.get('commit') != commit:
    known = {}
  tests = known.get('tests', {}) | _outcomes
  content = {'commit': commit, 'tests': dict(sorted(tests.items()))}
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content, indent=2) + '\n')
