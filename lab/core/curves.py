"""From a trial's eval_measurements.csv to steps and seconds to a target.

Reads our runs' files and AlgoPerf's own alike. A target is reached by a value
that equals it, as in the benchmark's scoring.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Point(NamedTuple):
  """One evaluation: steps made, seconds billed, value of the metric."""

  step: int
  seconds: float
  value: float


def curve(rows: Iterable[Mapping[str, str]], metric: str) -> list[Point]:
  """Evaluations of a run in order, from the rows of its CSV file.

  A preempted run of the benchmark repeats the steps after its checkpoint; what
  counts are the later rows. Rows without the metric are left out.

  Args:
    rows: With the columns global_step and accumulated_submission_time.
    metric: A column, such as 'validation/loss'.

  >>> row = {'global_step': '9', 'accumulated_submission_time': '2.5'}
  >>> curve([row | {'validation/loss': '0.25'}], 'validation/loss')
  [Point(step=9, seconds=2.5, value=0.25)]
  """
  points: list[Point] = []
  for row in rows:
    if not row.get(metric):
      continue
    # The benchmark's files hold steps as floats once a column has had gaps.
    step = int(float(row['global_step']))
    while points and points[-1].step >= step:
      points.pop()
    seconds = float(row['accumulated_submission_time'])
    points.append(Point(step, seconds, float(row[metric])))
  return points


def read_curve(path: str, metric: str) -> list[Point]:
  """Evaluations in a CSV file; none if it is empty."""
  with open(path, encoding='utf-8', newline='') as file:
    return curve(csv.DictReader(file), metric)


def reaches(value: float, target: float, higher_is_better: bool) -> bool:
  """Whether a value is as good as the target; NaN never is."""
  return value >= target if higher_is_better else value <= target


def first_at_target(
  points: Iterable[Point], target: float, higher_is_better: bool
) -> Point | None:
  """The first evaluation at which the target is reached, if any."""
  for point in points:
    if reaches(point.value, target, higher_is_better):
      return point
  return None


def best(points: Iterable[Point], higher_is_better: bool) -> float | None:
  """The best finite value of a run, None if it has none."""
  values = [p.value for p in points if math.isfinite(p.value)]
  if not values:
    return None
  return max(values) if higher_is_better else min(values)


def higher_is_better(workload: Any) -> bool:
  """Direction of a workload's target metric.

  Taken from the attribute `higher_is_better`, or for AlgoPerf's workloads,
  which have none, from whether a value above the target reaches it.
  """
  known = getattr(workload, 'higher_is_better', None)
  if known is not None:
    return known
  target = workload.validation_target_value
  above = target + max(1.0, abs(target))
  name = f'validation/{workload.target_metric_name}'
  return bool(workload.has_reached_validation_target({name: above}))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Columns of text, the first one left-aligned and the others right-aligned.

  >>> print(table(['name', 'steps'], [['a', '10'], ['long', '9']]))
  name  steps
  -----------
  a        10
  long      9
  """
  lines = [list(header), *map(list, rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = []
  for line in lines:
    cells = [line[0].ljust(widths[0])]
    cells += [
      cell.rjust(width)
      for cell, width in zip(line[1:], widths[1:], strict=True)
    ]
    text.append('  '.join(cells).rstrip())
  text.insert(1, '-' * len(text[0]))
  return '\n'.join(text)
