"""Scores of a group in which one submission were faster or reached more.

A change is written `SUBMISSION:CHANGES`, CHANGES a comma-separated list of
`xFACTOR`, which multiplies all its times, and `WORKLOAD=SECONDS`, which sets
the time to one target.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lab.core.errors import InputError
from lab.report import scores

# What an average is expected to save, beside one more target reached.
FEWER_STEPS = 0.9


@dataclasses.dataclass(frozen=True)
class Change:
  """A changed submission.

  Args:
    text: As the user wrote it.
    submission: Submission that changes.
    factor: Multiplies its times.
    seconds: New time to target by workload; set after the factor.
  """

  text: str
  submission: str
  factor: float = 1.0
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def apply(self, times: pd.DataFrame) -> pd.DataFrame:
    """Times to target of the group after the change."""
    changed = times.astype(float)
    changed.loc[self.submission] *= self.factor
    for workload, seconds in self.seconds.items():
      changed.loc[self.submission, workload] = seconds
    return changed


def _positive(text: str, change: str) -> float:
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  if not 0 < number < math.inf:
    raise InputError(
      f'Invalid what_if={change!r}: {text!r} must be a number in (0, inf).'
    )
  return number


def parse(
  text: str, submissions: Sequence[str], workloads: Sequence[str]
) -> Change:
  """Parse a change and check its names.

  >>> parse('lawa:x0.9,wmt=8000', ['lawa'], ['wmt'])
  Change(text='lawa:x0.9,wmt=8000', submission='lawa', factor=0.9, \
seconds={'wmt': 8000.0})

  Raises:
    InputError: an unknown name, or not a positive number.
  """
  name, colon, changes = text.rpartition(':')
  if not colon or name not in submissions:
    raise InputError(
      f'Invalid what_if={text!r}. Must be SUBMISSION:xFACTOR or '
      'SUBMISSION:WORKLOAD=SECONDS, SUBMISSION among '
      f'{", ".join(submissions)}.'
    )
  factor = 1.0
  seconds: dict[str, float] = {}
  for part in changes.split(','):
    workload, equals, value = part.strip().partition('=')
    if workload in seconds:
      raise InputError(f'Invalid what_if={text!r}: {workload} is given twice.')
    if equals and workload in workloads:
      seconds[workload] = _positive(value, text)
    elif not equals and workload.startswith('x'):
      factor *= _positive(workload[1:], text)
      _positive(str(factor), text)
    else:
      raise InputError(
        f'Invalid what_if={text!r}: {part!r} must be xFACTOR or '
        f'WORKLOAD=SECONDS, WORKLOAD among {", ".join(workloads)}.'
      )
  return Change(text, name, factor, seconds)


def outcome(
  times: pd.DataFrame,
  base_workloads: Sequence[str],
  change: Change,
  held_out: Mapping[str, str] = scores.NO_HELD_OUT,
) -> dict[str, Any]:
  """Score of the submission before and after a change, and all scores after."""
  before = scores.score(times, base_workloads, held_out)
  after = scores.score(change.apply(times), base_workloads, held_out)
  return {
    'what_if': change.text,
    'submission': change.submission,
    'score_before': float(before[change.submission]),
    'score_after': float(after[change.submission]),
    'gain': float(after[change.submission] - before[change.submission]),
    'scores_after': after.to_dict(),
  }


def value_of_changes(
  times: pd.DataFrame,
  base_workloads: Sequence[str],
  budgets: Mapping[str, float | None],
  held_out: Mapping[str, str] = scores.NO_HELD_OUT,
) -> list[dict[str, Any]]:
  """Gain by 10 % fewer steps beside the gain by one more workload.

  Steps are taken to last as long as before. The workload added is the missed
  one with the largest gain among those that another submission reaches, at the
  slowest time of these; where there is none, among all others, at the budget.
  Its held-out workloads count as reached as slowly as those that reach them.
  """
  before = scores.score(times, base_workloads, held_out)
  columns = times.reindex(columns=[*base_workloads, *held_out])
  columns = columns.fillna(math.inf)
  rows = []
  for submission in times.index:
    faster = Change('', submission, FEWER_STEPS)
    after = scores.score(faster.apply(columns), base_workloads, held_out)
    gain = after - before
    added = []
    for workload, seconds in _within_reach(
      columns, submission, base_workloads, budgets, held_out
    ):
      change = Change('', submission, 1.0, seconds)
      after = scores.score(change.apply(columns), base_workloads, held_out)
      reached_at = seconds.get(workload, columns.at[submission, workload])
      added.append(
        (float((after - before)[submission]), workload, float(reached_at))
      )
    best = max(added, default=(math.nan, None, math.nan))
    rows.append(
      {
        'submission': submission,
        'score': float(before[submission]),
        'gain_by_fewer_steps': float(gain[submission]),
        'gain_by_one_more_workload': best[0],
        'workload': best[1],
        'reached_at_seconds': best[2],
      }
    )
  return rows


def _within_reach(
  times: pd.DataFrame,
  submission: str,
  base_workloads: Sequence[str],
  budgets: Mapping[str, float | None],
  held_out: Mapping[str, str],
) -> list[tuple[str, dict[str, float]]]:
  """Base workloads that a submission misses, with times that were possible.

  Each comes with the times that would reach it: its own, and those of its
  held-out workloads, where the submission misses them.
  """
  slowest = times.where(times < math.inf).max()
  by_others, in_budget = [], []
  for workload in base_workloads:
    variants = [n for n, base in held_out.items() if base == workload]
    missed = [
      n for n in [workload, *variants] if math.isinf(times.at[submission, n])
    ]
    if not missed:
      continue
    seconds = {n: float(slowest[n]) for n in missed}
    known = {n: b for n in missed if (b := budgets.get(n)) is not None}
    if all(map(math.isfinite, seconds.values())):
      by_others.append((workload, seconds))
    elif len(known) == len(missed):
      in_budget.append((workload, known))
  return by_others or in_budget
