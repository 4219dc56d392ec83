"""Outcomes of the tests that run submissions on the benchmark's workloads.

`make test-algoperf` records the outcome of each of its tests, and the commit of
the code that it ran, in results/algoperf/matrix.json.
"""

import collections
import re
from collections.abc import Mapping

_TRAINED = re.compile(
  r'test_submission_trains_evaluates_and_resumes\[(\w+)-(\w+)\]'
)
_RESUMED = re.compile(
  r'test_(?:killed_and_resumed_run|a_killed_run_resumes_and)'
  r'_equals_the_undisturbed_one\[(\w+?)(?:-False)?\]'
)
# The only workload whose data can be made here, in the format it reads.
_RUNNER = 'mnist, by submission_runner.py'


def table(outcomes: Mapping[str, Mapping[str, str]]) -> str:
  """Format the outcomes as Markdown: workloads down, submissions across.

  Args:
    outcomes: Name of a test to its `outcome` and the `commit` that it ran at.

  >>> name = 'test_submission_trains_evaluates_and_resumes[nadamw-ogbg]'
  >>> print(table({name: {'outcome': 'passed', 'commit': 'abc'}}))
  Tests at commit `abc`: 1 passed.
  <BLANKLINE>
  | workload | `nadamw` |
  |---|---|
  | ogbg | passed |
  """
  counts = collections.Counter(
    (test['commit'], test['outcome']) for test in outcomes.values()
  )
  commits = [
    f'commit `{commit}`: '
    + ', '.join(
      f'{n} {how}' for (c, how), n in sorted(counts.items()) if c == commit
    )
    for commit in sorted({commit for commit, _ in counts})
  ]
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
  return '\n'.join([f'Tests at {"; at ".join(commits)}.', '', *text])
