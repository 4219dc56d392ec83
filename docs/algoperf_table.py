"""Outcomes of the tests that run submissions on the benchmark's workloads.

`make test-algoperf` records the outcome of each of its tests, and the commit
that all of them ran at, in results/algoperf/matrix.json.
"""

import collections
import re
from collections.abc import Mapping
from typing import Any

_TRAINED = re.compile(
  r'test_submission_trains_evaluates_and_resumes\[(\w+)-(\w+)\]'
)
_RESUMED = re.compile(
  r'test_(?:killed_and_resumed_run|a_killed_run_resumes_and)'
  r'_equals_the_undisturbed_one\[(\w+?)(?:-False)?\]'
)
# The only workload whose data can be made here, in the format it reads.
_RUNNER = 'mnist, by submission_runner.py'


def table(content: Mapping[str, Any]) -> str:
  """Format the outcomes as Markdown: workloads down, submissions across.

  Args:
    content: `commit`, and `tests`: name of a test to its outcome.

  >>> name = 'test_submission_trains_evaluates_and_resumes[nadamw-ogbg]'
  >>> print(table({'commit': 'abc', 'tests': {name: {'outcome': 'passed'}}}))
  All tests ran at commit `abc`: 1 passed.
  <BLANKLINE>
  | workload | `nadamw` |
  |---|---|
  | ogbg | passed |
  """
  outcomes = content['tests']
  counts = collections.Counter(test['outcome'] for test in outcomes.values())
  summary = ', '.join(f'{n} {outcome}' for outcome, n in sorted(counts.items()))
  cells: dict[tuple[str, str], str] = {}
  for name, result in outcomes.items():
    if match := _TRAINED.fullmatch(name):
      cells[match[2], match[1]] = result['outcome']
    elif match := _RESUMED.fullmatch(name):
      cells[_RUNNER, match[1]] = result['outcome']
  workloads = sorted({w for w, _ in cells}, key=lambda w: (w == _RUNNER, w))
  submissions = sorted({s for _, s in cells})
  header = ['workload', *(f'`{name}`' for name in submissions)]
  lines = [header, ['---'] * len(header)]
  lines += [
    [w, *(cells.get((w, s), 'not run') for s in submissions)] for w in workloads
  ]
  text = ['| ' + ' | '.join(line) + ' |' for line in lines]
  text[1] = '|---' * len(header) + '|'
  title = f'All tests ran at commit `{content["commit"]}`: {summary}.'
  return '\n'.join([title, '', *text])
