"""Numbers that the averages were to reach, beside those found."""

from collections.abc import Sequence

import pandas as pd

from lab.studies.parts import frame, tables
from lab.studies.parts.frame import Row
from lab.studies.parts.tuned import kind_of

# A final metric is no worse if it is within one range of NadamW's own values.
_SPREAD = -1.0


def table(rows: Sequence[Row], choices: Sequence[Row]) -> str:
  """Make the table of goals, in Markdown.

  A ratio is the median over all runs of the steps to target over NadamW's. The
  best single length is one for all workloads, in hindsight.

  Args:
    rows: those of study.json.
    choices: rows of the automatic choice at the tuned points.
  """
  data = frame.read(rows)
  data = data[data['tuned_for'] == 'raw']
  nadamw, shampoo = (
    data[data['optimizer'] == name] for name in ('nadamw', 'shampoo')
  )
  auto = frame.read(choices)
  chosen = auto[auto['candidate'] == 'auto']
  lines = [
    _line('LAWA, best single length', 0.85, _of_kind(nadamw, 'lawa')),
    _line('EMA, best single length', 0.85, _of_kind(nadamw, 'ema')),
    _line('LAWA at the default of 1 %', 0.88, _only(nadamw, 'lawa 1 %')),
    _line('EMA at the default of 1 %', 0.88, _only(nadamw, 'ema 1 %')),
    _line('auto', 0.86, chosen),
    _line('best average over Shampoo', 0.72, shampoo),
    _worst_metric(nadamw),
  ]
  return tables.markdown(['number', 'goal', 'found', 'by', ''], lines)


def _of_kind(data: pd.DataFrame, kind: str) -> pd.DataFrame:
  return data[data['candidate'].map(kind_of) == kind]


def _only(data: pd.DataFrame, candidate: str) -> pd.DataFrame:
  return data[data['candidate'] == candidate]


def _line(text: str, goal: float, data: pd.DataFrame) -> list[str]:
  """Compare the lowest median ratio of a candidate with a goal."""
  data = data[data['candidate'] != 'raw']
  if data.empty:
    return [text, f'≤ {goal:.2f}', tables.UNKNOWN, tables.UNKNOWN, '']
  medians = data.groupby('candidate')['ratio_to_nadamw'].agg(frame.median)
  found = medians.min()
  return [
    text,
    f'≤ {goal:.2f}',
    tables.number(found),
    str(medians.idxmin()),
    'reached' if found <= goal else '**missed**',
  ]


def _worst_metric(data: pd.DataFrame) -> list[str]:
  """Find the workload where an average over 1 % ends worst at T.

  The unit is the range of NadamW's own values over seeds.
  """
  gains, *_ = frame.gains(data, _only(data, 'raw'))
  data = data.assign(gain=gains)
  data = data[data['candidate'].isin(['lawa 1 %', 'ema 1 %'])]
  medians = data.groupby(['candidate', 'workload'])['gain'].median()
  return [
    'final metric at 1 %, worst workload, in ranges over seeds',
    f'≥ {_SPREAD:.2f}',
    tables.number(medians.min(), '+.2f'),
    ' on '.join(map(str, medians.idxmin())),
    'reached' if medians.min() >= _SPREAD else '**missed**',
  ]
