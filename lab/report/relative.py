"""Steps and seconds to target relative to a baseline's, by workload."""

import math
from typing import Any

import numpy as np
import pandas as pd

from lab.report import intervals

COLUMNS = ('steps', 'seconds')


def by_workload(
  medians: pd.DataFrame, studies: pd.DataFrame, baseline: str
) -> list[dict[str, Any]]:
  """Ratios of medians with intervals, where both reach the target.

  Args:
    medians: From `time_to_target.of_submissions`.
    studies: From `time_to_target.of_studies`; paired by name in the intervals.
    baseline: Submission to compare with.
  """
  rng = np.random.default_rng(intervals.SEED)
  keyed = medians.set_index(['submission', 'workload'])
  drawn_from = {c: intervals.seconds_by_study(studies, c) for c in COLUMNS}
  rows = []
  for submission, workload in keyed.index:
    if (baseline, workload) not in keyed.index or submission == baseline:
      continue
    mine = keyed.loc[(submission, workload)]
    other = keyed.loc[(baseline, workload)]
    if not (math.isfinite(mine['seconds']) and math.isfinite(other['seconds'])):
      continue
    row: dict[str, Any] = {'submission': submission, 'workload': workload}
    for column in COLUMNS:
      draws = intervals.paired_medians(
        drawn_from[column][submission, workload],
        drawn_from[column][baseline, workload],
        rng,
      )
      low, high = intervals.ratio_percentiles(*draws)
      row[f'{column}_ratio'] = mine[column] / other[column]
      row[f'{column}_ratio_low'] = low
      row[f'{column}_ratio_high'] = high
    row['studies'] = int(min(mine['studies'], other['studies']))
    rows.append(row)
  return rows
