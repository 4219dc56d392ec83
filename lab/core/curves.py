"""Read learning curves and find where they reach a target.

The functions read eval_measurements.csv of local runs and of AlgoPerf. A value
that equals the target reaches it, as in AlgoPerf's scoring.
"""

import csv
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Point(NamedTuple):
  """One evaluation: optimizer steps, billed seconds, value of the metric."""

  step: int
  seconds: float
  value: float


def step_of(row: Mapping[str, str]) -> int:
  """Return the step of a row; the benchmark may have written it as a float.

  Raises:
    KeyError, TypeError, ValueError: the row has no whole number of steps.

  >>> step_of({'global_step': '9.0'})
  9
  """
  # Its files hold steps as floats once a column has had gaps.
  number = float(row['global_step'])
  if not number.is_integer():
    raise ValueError(f'Invalid global_step={number}. Must be an integer.')
  return int(number)


def curve(rows: Iterable[Mapping[str, str]], metric: str) -> list[Point]:
  """Return the evaluations of a run in order, from the rows of its CSV file.

  A preempted run of AlgoPerf repeats the steps after its checkpoint; the later
  rows replace the earlier ones. Rows without the metric are left out.

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
    step = step_of(row)
    while points and points[-1].step >= step:
      points.pop()
    seconds = float(row['accumulated_submission_time'])
    points.append(Point(step, seconds, float(row[metric])))
  return points


def read_curve(path: str, metric: str) -> list[Point]:
  """Return the evaluations in a CSV file; an empty file has none."""
  with open(path, encoding='utf-8', newline='') as file:
    return curve(csv.DictReader(file), metric)


def reaches(value: float, target: float, higher_is_better: bool) -> bool:
  """Return True if a value is at least as good as the target; NaN is not."""
  return value >= target if higher_is_better else value <= target


def first_at_target(
  points: Iterable[Point], target: float, higher_is_better: bool
) -> Point | None:
  """Return the first evaluation that reaches the target, or None."""
  for point in points:
    if reaches(point.value, target, higher_is_better):
      return point
  return None


def best(points: Iterable[Point], higher_is_better: bool) -> float | None:
  """Return the best finite value of a run, or None without one."""
  values = [p.value for p in points if math.isfinite(p.value)]
  if not values:
    return None
  return max(values) if higher_is_better else min(values)


def higher_is_better(workload: Any) -> bool:
  """Return the direction of a workload's target metric.

  Local workloads have an attribute `higher_is_better`. AlgoPerf's do not: for
  them the function tests if a value above the target reaches it.
  """
  known = getattr(workload, 'higher_is_better', None)
  if known is not None:
    return known
  target = workload.validation_target_value
  above = target + max(1.0, abs(target))
  name = f'validation/{workload.target_metric_name}'
  return bool(workload.has_reached_validation_target({name: above}))
