"""Which submission was run on which of the benchmark's workloads, as a table.

`make test-algoperf` keeps how its tests ended in results/algoperf/matrix.json.
"""

import re
from collections.abc import Mapping
from typing import Any

_TRAINED = re.compile(
  r'test_submission_trains_evaluates_and_resumes\[(\w+)-(\w+)\]'
)
_RESUMED = re.compile(
  r'test_killed_and_resumed_run_equals_the_undisturbed_one\[(\w+)-False\]'
)
# The only workload whose data can be made here, in the format it reads.
_RUNNER = 'mnist, by submission_runner.py'


def table(outcomes: Mapping[str, Mapping[str, Any]]) -> str:
  """Markdown: workloads down, submissions across.

  Args:
    outcomes: name of a test to how it ended.

  >>> name = 'test_submission_trains_evaluates_and_resumes[nadamw-ogbg]'
  >>> print(table({name: {'outcome': 'passed'}}))
  | workload | `nadamw` |
  |---|---|
  | ogbg | passed |
  """
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
  return '\n'.join(text)
