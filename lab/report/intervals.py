"""Bootstrap intervals over studies.

Studies are drawn with replacement within each submission and workload. With
three studies there are ten different draws, so the interval of a median is
close to the range of the studies.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lab.report import scores

SEED = 0
RESAMPLES = 1000
LEVEL = 0.95


def resampled_medians(
  values: Sequence[float], rng: np.random.Generator, resamples: int = RESAMPLES
) -> np.ndarray:
  """Medians of samples drawn with replacement; infinite values are allowed."""
  array = np.asarray(values, dtype=float)
  draws = rng.integers(len(array), size=(resamples, len(array)))
  return np.median(array[draws], axis=1)


def percentiles(
  samples: np.ndarray, level: float = LEVEL
) -> tuple[float, float]:
  """Central interval; order statistics, so that infinite values stay so."""
  tail = (1 - level) / 2
  low, high = np.quantile(samples, [tail, 1 - tail], method='inverted_cdf')
  return float(low), float(high)


def seconds_by_study(
  studies: pd.DataFrame, column: str = 'seconds'
) -> dict[tuple[str, str], pd.Series]:
  """Times of the studies, by submission and workload."""
  groups = studies.groupby(['submission', 'workload'], sort=True)
  return {
    (str(submission), str(workload)): group.set_index('study')[column]
    for (submission, workload), group in groups
  }


def paired_medians(
  mine: pd.Series,
  other: pd.Series,
  rng: np.random.Generator,
  resamples: int = RESAMPLES,
) -> tuple[np.ndarray, np.ndarray]:
  """Medians of two submissions in the same resamples.

  Studies of the same names are drawn together, since `lab.launch` gives them
  the same seed; studies of different names are drawn apart.
  """
  if set(mine.index) != set(other.index):
    return (
      resampled_medians(mine.tolist(), rng, resamples),
      resampled_medians(other.tolist(), rng, resamples),
    )
  draws = rng.integers(len(mine), size=(resamples, len(mine)))
  both = mine.to_numpy(float), other[mine.index].to_numpy(float)
  first, second = (np.median(values[draws], axis=1) for values in both)
  return first, second


def ratio_percentiles(
  mine: np.ndarray, other: np.ndarray
) -> tuple[float, float]:
  """Interval of a ratio; draws in which both are infinite say nothing."""
  told = np.isfinite(mine) | np.isfinite(other)
  return percentiles(mine[told] / other[told])


def of_medians(studies: pd.DataFrame, column: str) -> pd.DataFrame:
  """Interval of the median over studies, a row per submission and workload."""
  rng = np.random.default_rng(SEED)
  rows = []
  keys = ['submission', 'workload']
  for (submission, workload), group in studies.groupby(keys, sort=True):
    low, high = percentiles(resampled_medians(group[column].tolist(), rng))
    rows.append(
      {
        'submission': submission,
        'workload': workload,
        f'{column}_low': low,
        f'{column}_high': high,
      }
    )
  return pd.DataFrame(rows)


def of_scores(
  studies: pd.DataFrame,
  base_workloads: Sequence[str],
  held_out: Mapping[str, str] = scores.NO_HELD_OUT,
  resamples: int = RESAMPLES,
) -> pd.DataFrame:
  """Interval of each score; all submissions are drawn anew in a resample."""
  rng = np.random.default_rng(SEED)
  names = sorted(studies['submission'].unique())
  workloads = [*base_workloads, *held_out]
  times = np.full((resamples, len(names), len(workloads)), math.inf)
  for (submission, workload), group in studies.groupby(
    ['submission', 'workload'], sort=True
  ):
    if workload in workloads:
      place = names.index(str(submission)), workloads.index(str(workload))
      times[:, *place] = resampled_medians(
        group['seconds'].tolist(), rng, resamples
      )
  pairs = scores.held_out_columns(base_workloads, held_out)
  ratio = scores.relative_times(times, pairs)[..., : len(base_workloads)]
  taus = np.linspace(1.0, scores.MAX_TAU, scores.POINTS)
  heights = np.stack([(ratio <= tau).mean(axis=2) for tau in taus], axis=-1)
  area = np.trapezoid(heights, x=taus, axis=-1) / (taus[-1] - taus[0])
  rows = []
  for i, name in enumerate(names):
    low, high = percentiles(area[:, i])
    rows.append({'submission': name, 'score_low': low, 'score_high': high})
  return pd.DataFrame(rows)
