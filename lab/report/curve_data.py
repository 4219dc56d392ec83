"""Curves and colours, shared by static and interactive figures."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lab.report.log_files import Evaluation
from lab.report.report import Report
from lab.report.targets import Goal

# Of medium lightness, so that they show on white and on near-black.
_COLOURS = (
  '#3b7dd8',
  '#e07b00',
  '#2a9d5c',
  '#d1495b',
  '#8a63d2',
  '#a0703c',
  '#d660a8',
  '#7a8288',
  '#93a100',
  '#14a1b5',
)
# Beyond, the transformations of matplotlib overflow.
_LARGEST = 1e100
# Targets that an axis reaches beyond the target, where runs have diverged.
_AXIS = 3.0
DASHES = ('solid', 'dash', 'dot', 'dashdot')


def colour(index: int) -> str:
  """Colour of the submission with this place in the report."""
  return _COLOURS[index % len(_COLOURS)]


def dash(index: int) -> str:
  """Line style, which tells submissions apart once colours repeat."""
  return DASHES[index // len(_COLOURS) % len(DASHES)]


def labels(names: Sequence[str], width: int = 28) -> dict[str, str]:
  """Labels of at most `width` characters, all different.

  >>> labels(['nadamw', 'a_long_name_of_a_submission_v1'], 20)
  {'nadamw': 'nadamw', 'a_long_name_of_a_submission_v1': 'a_long_nam…ission_v1'}
  """
  result: dict[str, str] = {}
  for name in names:
    label, number = _shortened(name, width), 2
    while label in result.values():
      label = f'{_shortened(name, width - 3)} {number}'
      number += 1
    result[name] = label
  return result


def _shortened(name: str, width: int) -> str:
  """Keep the beginning and the end of a name, which often is a version."""
  if len(name) <= width:
    return name
  end = (width - 1) // 2
  return f'{name[: width - 1 - end]}…{name[-end:]}'


@dataclasses.dataclass(frozen=True)
class Curve:
  """Validation metric of the fastest trial of a study.

  Args:
    submission: Name.
    workload: Name.
    study: Name.
    steps: Optimizer steps at the evaluations.
    seconds: Billed seconds at the evaluations.
    values: Target metric.
  """

  submission: str
  workload: str
  study: str
  steps: list[float]
  seconds: list[float]
  values: list[float]


def kept(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
  """Evaluations to draw, without those that a resumed run made again."""
  result: list[Evaluation] = []
  for evaluation in evaluations:
    while result and result[-1].step >= evaluation.step:
      result.pop()
    if abs(evaluation.value) < _LARGEST:
      result.append(evaluation)
  return result


def curves(report: Report) -> list[Curve]:
  """A curve per submission, workload and study, in the report's order."""
  trials = {
    (t.submission, t.workload, t.study, t.trial): t for t in report.runs
  }
  order = {name: i for i, name in enumerate(report.submissions)}
  result = []
  for row in report.studies.itertuples():
    key = (row.submission, row.workload, row.study, row.fastest_trial)
    points = kept(trials[key].evaluations)
    result.append(
      Curve(
        row.submission,
        row.workload,
        row.study,
        [p.step for p in points],
        [p.seconds for p in points],
        [p.value for p in points],
      )
    )
  return sorted(result, key=lambda c: (order[c.submission], c.study))


def value_range(drawn: Sequence[Curve], goal: Goal) -> tuple[float, float]:
  """Axis range with the target and the better three quarters of the values.

  The first evaluations of a run may be orders of magnitude off, and so may all
  of one that diverged.
  """
  values = np.array([v for curve in drawn for v in curve.values])
  if not len(values):
    return goal.target - 1.0, goal.target + 1.0
  shown = (0.25, 1.0) if goal.higher_is_better else (0.0, 0.75)
  low, high = np.quantile(values, shown)
  reach = _AXIS * abs(goal.target) or math.inf
  low = min(max(low, goal.target - reach), goal.target)
  high = max(min(high, goal.target + reach), goal.target)
  margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
  return float(low - margin), float(high + margin)


def sweep_top(rows: pd.DataFrame) -> float:
  """Upper end of the axis of steps to target, for trials of a workload."""
  fractions = rows['fraction_of_budget']
  return 1.1 * max([1.0, *fractions[np.isfinite(fractions)]])
