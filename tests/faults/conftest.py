"""Fixtures of the fault-injection tests.

Each question has a short form, in `make test`, and a long one, marked `faults`.
`make test-faults` runs both and counts what they have tried.
"""

import os

import code_commit
import fault_tally
import pytest

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  report = yield
  if report.failed:
    item.stash[_FAILED] = True
  return report


@pytest.fixture
def tally(request):
  """Counts of the test; one that has finished at this commit is skipped."""
  folder = os.environ.get('WEIGHTAVG_FAULTS')
  name = request.node.nodeid.partition('tests/faults/')[2]
  # Tests change the working directory.
  result = fault_tally.Tally(name, folder and code_commit.ROOT / folder)
  if result.is_done:
    pytest.skip('finished at this commit')
  yield result
  if result.lost or not request.node.stash.get(_FAILED, False):
    result.write()
