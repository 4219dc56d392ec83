"""Try mutmut's mutants in forks of one pytest process: a plugin of pytest.

mutmut collects the tests again for each mutant. Here one process imports and
collects them once; it runs neither a test nor a mutant itself. A fork measures
each test: its duration and the mutated functions that it calls. A fork for each
mutant activates it and runs the tests that call its function, the quickest
first, until one fails.

`fault_mutants` loads this plugin in mutmut's folder. An outcome is kept there
while the mutant's module and the file of the test that decided are the same. A
survivor is tried again by the tests of files that have changed or are new.
"""

import collections
import contextlib
import functools
import gc
import hashlib
import importlib
import itertools
import json
import os
import pathlib
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from mutmut.utils.format_utils import mangled_name_from_mutant_name

OUTCOMES = pathlib.Path('outcomes.jsonl')
CALLS = pathlib.Path('calls.jsonl')
# Seconds for a test: loops that a mutant makes endless end.
_GRACE, _TIMES = 5.0, 10.0
# Address space that a mutant may take beside what the process has.
_MEMORY = 2 << 30
# Seconds. Tests that take longer (they compile) are left to the functions that
# no other test calls.
_LONG = 3.0
# Parts of a module's name, and of the names of its tests. Other tests find too
# little for their time. A module that is not named here has all tests.
_PLACES = {
  '.shampoo.': ('/shampoo/',),
  '.nadamw.': ('/test_nadamw',),
  '.multi_tensor.': ('/test_multi_tensor',),
}
# torch's optimizers import the first in their first step, compiled ones import
# the second, which takes seconds.
_IMPORTED_LATE = ('torch._dynamo', 'torch._inductor.compile_fx')


def pytest_addoption(parser: pytest.Parser) -> None:
  """Add the file that names the mutants."""
  parser.addoption('--mutants', type=pathlib.Path, required=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
  """Try the mutants in the place of running the tests once."""
  if session.testsfailed:
    raise session.Interrupted('The tests cannot be collected.')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    for module in _IMPORTED_LATE:
      importlib.import_module(module)
  # Forks share the memory of what they don't collect.
  gc.collect()
  gc.freeze()
  # Nothing of what the forks find is printed.
  plugins = session.config.pluginmanager
  plugins.unregister(name='terminalreporter')
  mutants = session.config.getoption('mutants').read_text().split()
  _Trials(session.items, mutants).run()
  return True


class _Trials:
  """Mutants, and the tests of their modules that call their functions."""

  def __init__(
    self, items: Sequence[pytest.Item], mutants: Sequence[str]
  ) -> None:
    self._items = {item.nodeid: item for item in items}
    self._mutants = mutants
    self._modules = {
      module: _digest(module.replace('.', '/') + '.py')
      for module in {mutant.rpartition('.')[0] for mutant in mutants}
    }
    self._files = {path: _digest(path) for path in {i.path for i in items}}
    self._seconds: dict[str, float] = {}
    self._callers: dict[str, list[str]] = collections.defaultdict(list)

  def run(self) -> None:
    """Try each mutant with the tests that have not decided on it."""
    self._measure_tests()
    known = {line['mutant']: line for line in read_lines(OUTCOMES)}
    kills: collections.Counter[tuple[str, str]] = collections.Counter()
    for number, mutant in enumerate(self._mutants, 1):
      line = known.get(mutant, {'killed_by': None, 'digests': []})
      function = mangled_name_from_mutant_name(mutant)
      tests = self._tests_of(function)
      digests = {test: self._decided(mutant, test) for test in tests}
      if line['killed_by'] is None:
        tests = [test for test in tests if digests[test] not in line['digests']]
        is_kept = bool(line['digests']) and not tests
      else:
        is_kept = set(line['digests']) <= set(digests.values())
      if not is_kept:
        # A test that killed other mutants of the function is tried early.
        tests.sort(
          key=lambda test: self._seconds[test] / (1 + kills[function, test])
        )
        killed_by = self._try(mutant, tests)
        decisive = [killed_by] if killed_by in digests else list(digests)
        line = {
          'mutant': mutant,
          'killed_by': killed_by,
          'digests': sorted({digests[test] for test in decisive}),
        }
        _append(OUTCOMES, line)
        if killed_by is None:
          print(f'{number} of {len(self._mutants)}: {mutant} survives')
      kills[function, line['killed_by'] or ''] += 1

  def _measure_tests(self) -> None:
    known = {line['test']: line for line in read_lines(CALLS)}
    code = '-'.join(sorted(self._modules.values()))
    for test, item in self._items.items():
      digest = f'{self._files[item.path]}-{code}'
      line = known.get(test, {})
      if line.get('digest') != digest:
        found = _in_fork(functools.partial(_calls, item))
        if isinstance(found, int) or found['failed']:
          raise pytest.UsageError(f'{test} fails without a mutant.')
        line = found | {'test': test, 'digest': digest}
        _append(CALLS, line)
      self._seconds[test] = line['seconds']
      for function in line['functions']:
        self._callers[function].append(test)

  def _tests_of(self, function: str) -> list[str]:
    places = next(
      (places for part, places in _PLACES.items() if part in function), ('',)
    )
    tests = [
      test
      for test in self._callers[function]
      if any(place in test for place in places)
    ]
    return [test for test in tests if self._seconds[test] < _LONG] or tests

  def _decided(self, mutant: str, test: str) -> str:
    """Return a digest of the code that decides on a mutant in a test."""
    module = self._modules[mutant.rpartition('.')[0]]
    return f'{module}-{self._files[self._items[test].path]}'

  def _try(self, mutant: str, tests: Sequence[str]) -> str | None:
    """Return the test that fails, or how the fork ends; None for neither."""
    items = [self._items[test] for test in tests]
    limits = [_GRACE + _TIMES * self._seconds[test] for test in tests]
    found = _in_fork(functools.partial(_first_failure, mutant, items, limits))
    if isinstance(found, int):
      return signal.strsignal(found)
    return found['failed']


def _first_failure(
  mutant: str, items: Sequence[pytest.Item], limits: Sequence[float]
) -> dict[str, Any]:
  size = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  size = size * resource.getpagesize() + _MEMORY
  resource.setrlimit(resource.RLIMIT_AS, (size, size))
  set_mutant_under_test(mutant)
  pairs = itertools.pairwise([*items, None])
  for (item, following), limit in zip(pairs, limits, strict=True):
    # The signal ends the fork in compiled code, too.
    signal.setitimer(signal.ITIMER_REAL, limit)
    if _fails(item, following):
      return {'failed': item.nodeid}
  return {'failed': None}


def _calls(item: pytest.Item) -> dict[str, Any]:
  begin = os.times().elapsed
  set_mutant_under_test('stats')
  failed = _fails(item, None)
  seconds = os.times().elapsed - begin
  functions = sorted(state()._stats)
  return {'failed': failed, 'seconds': seconds, 'functions': functions}


def _fails(item: pytest.Item, following: pytest.Item | None) -> bool:
  item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
  return item.session.testsfailed > 0


def _in_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any] | int:
  """Return the result of work in a fork, or the signal that ends the fork."""
  reader, writer = os.pipe()
  process = os.fork()
  if process == 0:
    try:
      os.setpgid(0, 0)
      silent = os.open(os.devnull, os.O_WRONLY)
      os.dup2(silent, 1)
      os.dup2(silent, 2)
      result = work()
    except BaseException:
      result = {'error': traceback.format_exc()}
    os.write(writer, json.dumps(result).encode())
    os._exit(0)
  os.close(writer)
  _, status = os.waitpid(process, 0)
  with contextlib.suppress(ProcessLookupError):
    # Processes that a test started and a mutant left behind.
    os.killpg(process, signal.SIGKILL)
  with os.fdopen(reader) as file:
    text = file.read()
  if not text:
    return os.WTERMSIG(status)
  result = json.loads(text)
  if 'error' in result:
    raise RuntimeError(result['error'])
  return result


def _digest(path: str | pathlib.Path) -> str:
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:12]


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def _append(path: pathlib.Path, line: dict[str, Any]) -> None:
  with path.open('a') as file:
    file.write(json.dumps(line) + '\n')
