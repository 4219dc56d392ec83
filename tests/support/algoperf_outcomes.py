"""Outcomes of the tests of the real benchmark, kept for the docs' table.

The suite takes hours, so an interrupted one goes on: a test that has passed
isn't run again until a file changes that the tests run. Each outcome names the
commit of these files.
"""

import json
import pathlib

import torch

from lab.core import logs


class Outcomes:
  """A pytest plugin that records outcomes and skips the tests that passed.

  Args:
    path: JSON file, name of a test to its `outcome`, `commit`, `torch` and, if
      it was skipped, `reason`.
    commit: Commit of the code.
  """

  def __init__(self, path: pathlib.Path, commit: str) -> None:
    self.path, self.commit = path, commit
    self.tests = json.loads(path.read_text()) if path.exists() else {}

  def pytest_collection_modifyitems(self, config, items):
    """Deselect the tests that passed at this commit."""
    passed = {
      name
      for name, entry in self.tests.items()
      if (entry['outcome'], entry['commit']) == ('passed', self.commit)
    }
    done = [item for item in items if item.name in passed]
    config.hook.pytest_deselected(items=done)
    items[:] = [item for item in items if item.name not in passed]

  def pytest_runtest_logreport(self, report):
    """Write the outcome of a test of the real benchmark."""
    ended = report.when == 'call' or report.outcome != 'passed'
    if not ended or 'algoperf' not in report.keywords:
      return
    entry = {
      'commit': self.commit,
      'outcome': report.outcome,
      'torch': torch.__version__,
    }
    if report.skipped:
      entry['reason'] = report.longrepr[2]
    self.tests[report.nodeid.rpartition('::')[2]] = entry
    self.path.parent.mkdir(parents=True, exist_ok=True)
    logs.write_json(str(self.path), dict(sorted(self.tests.items())))
