"""Numbers that a claim takes from the curves of runs.

A level is a value of the validation metric. The goal of a run is its workload's
target if the raw weights reach it within T, and the best value of the raw
weights in the first three quarters of T otherwise: a run at a rate, length or
batch size for which no target was set has a goal, too.
"""

import math
from collections.abc import Sequence
from typing import Any

from lab.core import curves
from lab.core.curves import Point
from lab.studies.claims.averages import RAW
from lab.studies.parts.training import Result

# Where in T the level lies that stands in for a target: targets are set so.
LEVEL_AT = 0.75
# A run that never arrives counts as arriving at this multiple of its T.
NEVER = 2.0


def points(result: Result, name: str = RAW) -> list[Point]:
  """Evaluations of a candidate in order."""
  return [Point(int(step), *rest) for step, *rest in result['curves'][name]]


def level_at(result: Result, fraction: float, name: str = RAW) -> float | None:
  """Best value up to a fraction of T; None where all are NaN."""
  until = fraction * result['budget_steps']
  early = [p for p in points(result, name) if p.step <= until]
  return curves.best(early, result['higher_is_better'])


def goal(result: Result) -> float | None:
  """The level that steps are counted to, set by the run's raw weights."""
  target, higher = result['target'], result['higher_is_better']
  if curves.first_at_target(points(result), target, higher) is not None:
    return target
  return level_at(result, LEVEL_AT)


def arrival(
  result: Result, name: str, level: float, seconds: bool = False
) -> float | None:
  """Steps or billed seconds to a level; None if it is never reached."""
  found = curves.first_at_target(
    points(result, name), level, result['higher_is_better']
  )
  if found is None:
    return None
  return found.seconds if seconds else float(found.step)


def ratio(
  result: Result,
  name: str,
  level: float | None,
  baseline: Result | None = None,
  baseline_name: str = RAW,
  seconds: bool = False,
) -> float | None:
  """Steps of a candidate to a level over those of a baseline.

  Args:
    result: of the candidate's run.
    name: of the candidate.
    level: to reach; None gives None.
    baseline: result of the baseline's run; the candidate's own by default.
    baseline_name: of the baseline's candidate.
    seconds: billed seconds instead of steps.

  Returns:
    None if the baseline never arrives. A candidate that never arrives counts as
    arriving at twice its T.
  """
  baseline = result if baseline is None else baseline
  if level is None:
    return None
  theirs = arrival(baseline, baseline_name, level, seconds)
  if theirs is None or theirs <= 0:
    return None
  mine = arrival(result, name, level, seconds)
  if mine is None:
    last = points(result, name)[-1]
    mine = NEVER * (last.seconds if seconds else result['budget_steps'])
  return mine / theirs


def value_at(result: Result, name: str, fraction: float) -> float | None:
  """Value at a fraction of T, linear between evaluations; None if not finite.

  At 1 that is the last evaluation.
  """
  at = fraction * result['budget_steps']
  before = after = None
  for point in points(result, name):
    if point.step >= at:
      after = point
      break
    before = point
  if after is None:
    return None
  if before is None or after.step == at:
    found = after.value if before is None or after.step == at else math.nan
    # The first evaluation stands for what is just before it.
    near = after.step - at <= result['evaluated_every']
    return found if near and math.isfinite(found) else None
  share = (at - before.step) / (after.step - before.step)
  found = before.value + share * (after.value - before.value)
  return found if math.isfinite(found) else None


def final(result: Result, name: str = RAW) -> float | None:
  """Value at the end of the run; None if it is not finite."""
  return value_at(result, name, 1.0)


def gain(
  new: float | None, old: float | None, higher_is_better: bool
) -> float | None:
  """Improvement of a metric, as a fraction of the old value.

  >>> gain(0.9, 1.0, higher_is_better=False)
  0.09999999999999998
  """
  if new is None or old is None or old == 0:
    return None
  return (new - old if higher_is_better else old - new) / abs(old)


def difference(a: float | None, b: float | None) -> float | None:
  """a - b; None if one is unknown."""
  return None if a is None or b is None else a - b


def quotient(a: float | None, b: float | None) -> float | None:
  """a / b; None if one is unknown or b is 0."""
  return None if a is None or not b else a / b


def spread(values: Sequence[float | None]) -> float | None:
  """Standard deviation over seeds; None below two values or where it is 0."""
  known = [value for value in values if value is not None]
  if len(known) < 2:
    return None
  mean = sum(known) / len(known)
  variance = sum((v - mean) ** 2 for v in known) / (len(known) - 1)
  return math.sqrt(variance) or None


def averaging_share(result: Result, name: str) -> float:
  """Seconds of an average as a fraction of those of the training alone."""
  own: dict[str, Any] = result['averaging_seconds']
  billed = points(result)[-1].seconds - own[RAW]
  return (own[name] - own[RAW]) / billed
