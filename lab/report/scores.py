"""AlgoPerf's scores: performance profiles and their integral.

The ratio of a submission on a workload is its time to target over the fastest
one. The profile is the fraction of base workloads with a ratio of at most tau;
the score is its integral over tau in [1, 4], divided by 3.
Dahl et al. (2023), "Benchmarking Neural Network Training Algorithms", section 4
(arXiv 2306.07179).

AlgoPerf 0.5 and 0.6 have held-out workloads, variants of a base workload. A
submission that misses a held-out workload misses its base workload, too. From
1.0 on there are none.
"""

import math
import types
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

MAX_TAU = 4.0
# The published scoring integrates by the trapezoidal rule over 100 points; its
# figures differ from the exact integral in the third digit.
POINTS = 100
NO_HELD_OUT: Mapping[str, str] = types.MappingProxyType({})


def relative_times(
  times: np.ndarray,
  held_out: Sequence[tuple[int, int]] = (),
  max_tau: float = MAX_TAU,
) -> np.ndarray:
  """Times over the fastest of each workload, infinite where they do not count.

  The steps of the published scoring, in its order: a held-out workload counts
  only where its base workload is reached; times above `max_tau` times the
  fastest do not count; a base workload counts only where its held-out ones
  still do. The rest is divided by the fastest time that is left.

  Args:
    times: Seconds to target, infinite where missed; the last two axes are
      submissions and workloads.
    held_out: Columns of a held-out workload and of its base workload.
    max_tau: Largest ratio that counts.
  """
  times = np.array(times, dtype=float)
  for variant, base in held_out:
    times[..., variant][np.isinf(times[..., base])] = math.inf
  fastest = times.min(axis=-2, keepdims=True)
  times[times > max_tau * fastest] = math.inf
  for variant, base in held_out:
    times[..., base][np.isinf(times[..., variant])] = math.inf
  fastest = np.broadcast_to(times.min(axis=-2, keepdims=True), times.shape)
  result = np.full_like(times, math.inf)
  counts = np.isfinite(times)
  # A target reached at 0 s is the fastest: 0 / 0 is 1.
  result[counts & (times == fastest)] = 1.0
  later = counts & (times > fastest) & (fastest > 0)
  result[later] = times[later] / fastest[later]
  return result


def ratios(
  times: pd.DataFrame,
  base_workloads: Sequence[str],
  held_out: Mapping[str, str] = NO_HELD_OUT,
  max_tau: float = MAX_TAU,
) -> pd.DataFrame:
  """Times over the fastest of each base workload; see `relative_times`.

  Args:
    times: Seconds to target, submissions by workloads; infinite or NaN where
      the target was missed.
    base_workloads: Columns that count; absent ones are missed by everyone.
    held_out: Base workload of each held-out workload.
    max_tau: Largest ratio that counts.

  >>> times = pd.DataFrame({'wmt': [2.0, 3.0, 9.0]}, index=['a', 'b', 'c'])
  >>> ratios(times, ['wmt'])['wmt'].tolist()
  [1.0, 1.5, inf]
  """
  columns = [*base_workloads, *held_out]
  table = times.reindex(columns=columns).fillna(math.inf)
  pairs = held_out_columns(base_workloads, held_out)
  table[:] = relative_times(table.to_numpy(dtype=float), pairs, max_tau)
  return table[list(base_workloads)]


def held_out_columns(
  base_workloads: Sequence[str], held_out: Mapping[str, str]
) -> list[tuple[int, int]]:
  """Columns of held-out workloads, placed after the base ones, and of bases."""
  places = {name: i for i, name in enumerate(base_workloads)}
  return [
    (len(places) + i, places[base]) for i, base in enumerate(held_out.values())
  ]


def profiles(
  ratio: pd.DataFrame, max_tau: float = MAX_TAU, points: int = POINTS
) -> pd.DataFrame:
  """Fraction of workloads within tau of the fastest; a column per tau."""
  taus = np.linspace(1.0, max_tau, points)
  counts = ratio.to_numpy()[:, :, None] <= taus
  return pd.DataFrame(counts.mean(axis=1), index=ratio.index, columns=taus)


def integrate(profile: pd.DataFrame) -> pd.Series:
  """Normalised area under each profile: the score, in [0, 1]."""
  taus = profile.columns.to_numpy(dtype=float)
  area = np.trapezoid(profile.to_numpy(), x=taus, axis=1)
  return pd.Series(area / (taus[-1] - taus[0]), index=profile.index)


def score(
  times: pd.DataFrame,
  base_workloads: Sequence[str],
  held_out: Mapping[str, str] = NO_HELD_OUT,
) -> pd.Series:
  """Score of each submission within the group.

  >>> times = pd.DataFrame({'wmt': [2.0, 9.0]}, index=['a', 'b'])
  >>> score(times, ['wmt']).tolist()
  [1.0, 0.0]
  """
  return integrate(profiles(ratios(times, base_workloads, held_out)))


def speed_ups(
  times: pd.DataFrame,
  baseline: str,
  base_workloads: Sequence[str],
  budgets: Mapping[str, float | None],
) -> pd.Series:
  """Geometric mean over workloads of the time relative to a baseline's.

  A missed target costs the budget and one second, as in the published scoring.
  NaN where a base workload's budget is unknown and a target is missed.
  """
  table = times.reindex(columns=list(base_workloads)).fillna(math.inf)
  for name in table:
    budget = budgets.get(name)
    missed = math.nan if budget is None else budget + 1.0
    table[name] = table[name].replace(math.inf, missed)
  relative = np.log(table / table.loc[baseline])
  return np.exp(relative.mean(axis=1, skipna=False))
