"""Intervals and verdicts.

An effect is one number for a workload and a seed, already paired: a ratio or a
difference of two curves on the same batches. The interval is a percentile
bootstrap on two levels: workloads are drawn with replacement, then seeds within
each drawn workload, and the median of all draws is taken. On a single workload
only its seeds are drawn. One workload that disagrees therefore widens the
interval, however many seeds it has.

A claim names a range of effects. It holds if the whole interval is inside, and
does not hold if the whole interval is beyond one of the ends; anything else, an
effect of exactly none included, is undecided.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy import stats

HOLDS, FAILS, UNDECIDED = 'holds', 'does not hold', 'undecided'
NOT_MEASURED = 'not measured'

# Seed of all resampling.
SEED = 20250610
RESAMPLES = 9999
LEVEL = 0.95

# Workload and seed.
Key = tuple[str, int]
Effects = Mapping[Key, float | None]


@dataclasses.dataclass(frozen=True)
class Interval:
  """Median with a 95 % interval; NaN where there are too few values."""

  median: float
  low: float
  high: float


def by_workload(effects: Effects) -> dict[str, list[float]]:
  """Known effects of each workload, in the order of the seeds.

  >>> by_workload({('b', 1): 2.0, ('b', 0): 1.0, ('a', 0): None})
  {'b': [1.0, 2.0]}
  """
  groups: dict[str, list[float]] = {}
  for (workload, _), value in sorted(effects.items()):
    if value is not None and math.isfinite(value):
      groups.setdefault(workload, []).append(value)
  return groups


def median(effects: Effects) -> float:
  """Median of all known effects; NaN without any."""
  known = [v for values in by_workload(effects).values() for v in values]
  return float(np.median(known)) if known else math.nan


def interval(effects: Effects) -> Interval:
  """Median of all known effects, and its bootstrap interval.

  Args:
    effects: None and values that are not finite are left out.
  """
  groups = [np.array(values) for values in by_workload(effects).values()]
  middle = median(effects)
  if sum(map(len, groups)) < 2:
    return Interval(middle, math.nan, math.nan)
  rng = np.random.default_rng(SEED)
  sample: np.ndarray
  statistic: Any
  if len(groups) == 1:
    sample, statistic = groups[0], np.median
  else:
    sample, statistic = np.arange(len(groups)), _TwoLevels(groups, rng)
  found = stats.bootstrap(
    (sample,),
    statistic,
    n_resamples=RESAMPLES,
    confidence_level=LEVEL,
    method='percentile',
    vectorized=True,
    rng=rng,
  ).confidence_interval
  return Interval(middle, float(found.low), float(found.high))


class _TwoLevels:
  """Median over the drawn workloads of seeds drawn within each of them."""

  def __init__(
    self, groups: list[np.ndarray], rng: np.random.Generator
  ) -> None:
    self._rng = rng
    self._sizes = np.array([len(group) for group in groups])
    self._draws = self._sizes.max()
    self._values = np.full((len(groups), self._draws), math.nan)
    for row, group in zip(self._values, groups, strict=True):
      row[: len(group)] = group

  def __call__(self, drawn: np.ndarray, axis: int = -1) -> np.ndarray:
    """Medians of samples of workloads, given by number along the last axis."""
    assert axis in (-1, drawn.ndim - 1)
    uniform = self._rng.random((*drawn.shape, self._draws))
    seeds = (uniform * self._sizes[drawn][..., None]).astype(int)
    return np.median(self._values[drawn[..., None], seeds], axis=(-2, -1))


def verdict(found: Interval, claimed: tuple[float, float]) -> str:
  """Compare an interval with the claimed range of effects.

  Args:
    found: of the effect.
    claimed: open range; infinite ends are allowed.

  >>> below_one = (-math.inf, 1.0)
  >>> verdict(Interval(0.8, 0.7, 0.9), below_one)
  'holds'
  >>> verdict(Interval(1.0, 1.0, 1.0), below_one)
  'undecided'
  >>> verdict(Interval(1.2, 1.1, 1.3), below_one)
  'does not hold'
  """
  low, high = claimed
  if math.isnan(found.low) or math.isnan(found.high):
    return UNDECIDED
  if low < found.low and found.high < high:
    return HOLDS
  if found.low > high or found.high < low:
    return FAILS
  return UNDECIDED


def verdicts(effects: Effects, claimed: tuple[float, float]) -> dict[str, str]:
  """Verdict on each workload, from its own interval."""
  return {
    name: verdict(
      interval({(name, i): v for i, v in enumerate(values)}), claimed
    )
    for name, values in by_workload(effects).items()
  }


def combined(verdicts: Iterable[str]) -> str:
  """Verdict on a claim of several parts, all of which must hold.

  >>> combined(['holds', 'undecided']), combined(['undecided', 'does not hold'])
  ('undecided', 'does not hold')
  """
  found = set(verdicts)
  for worst in (FAILS, UNDECIDED, HOLDS):
    if worst in found:
      return worst
  return NOT_MEASURED
