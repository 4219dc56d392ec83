"""AlgoPerf's scores: performance profiles and their integral.

The ratio of a submission on a workload is its time to target over the fastest
one. The profile is the fraction of base workloads with a ratio of at most tau;
the score is its integral over tau in [1, 4], divided by 3.
Dahl et al. (2023), "Benchmarking Neural Network Training Algorithms", section 4
(arXiv 2306.07179). Held-out workloads are not part of the score.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

MAX_TAU = 4.0
# The published scoring integrates by the trapezoidal rule over 100 points; its
# figures differ from the exact integral in the third digit.
POINTS = 100


def ratios(
  times: pd.DataFrame, base_workloads: Sequence[str], max_tau: float = MAX_TAU
) -> pd.DataFrame:
  """Times over the fastest of each workload; infinite above `max_tau`.

  Args:
    times: Seconds to target, submissions by workloads; infinite or NaN where
      the target was missed.
    base_workloads: Columns that count; absent ones are missed by everyone.

  >>> times = pd.DataFrame({'wmt': [2.0, 3.0, 9.0]}, index=['a', 'b', 'c'])
  >>> ratios(times, ['wmt'])['wmt'].tolist()
  [1.0, 1.5, inf]
  """
  table = times.reindex(columns=list(base_workloads)).fillna(math.inf)
  fastest = table.min(axis=0)
  table = table.mask(table > max_tau * fastest, math.inf)
  return (table / fastest).fillna(math.inf)


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


def score(times: pd.DataFrame, base_workloads: Sequence[str]) -> pd.Series:
  """Score of each submission within the group.

  >>> times = pd.DataFrame({'wmt': [2.0, 9.0]}, index=['a', 'b'])
  >>> score(times, ['wmt']).tolist()
  [1.0, 0.0]
  """
  return integrate(profiles(ratios(times, base_workloads)))


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
