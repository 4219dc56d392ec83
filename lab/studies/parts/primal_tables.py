"""Tables and figures of averages that train beside averages that watch."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lab.studies.parts import frame, levels, plots, tables
from lab.studies.parts.frame import Row

# Method to its name in tables, by optimizer. `<method>_best` is the average
# that is best over all workloads in hindsight.
OVER_NADAMW = {
  'nadamw': 'NadamW',
  'nadamw_lawa': 'NadamW, LAWA',
  'nadamw_ema': 'NadamW, EMA',
  'nadamw_polynomial': 'NadamW, polynomial',
  'nadamw_lawa_best': 'NadamW, LAWA, best in hindsight',
  'nadamw_ema_best': 'NadamW, EMA, best in hindsight',
  'nadamw_polynomial_best': 'NadamW, polynomial, best in hindsight',
  'lookahead': 'NadamW in Lookahead',
  'nadamw_primal': 'NadamW at its EMA',
  'nadamw_schedule_free': 'NadamW, schedule-free',
  'adamw_schedulefree': "PyPI's AdamWScheduleFree",
}
OVER_SHAMPOO = {
  'shampoo': 'Shampoo',
  'shampoo_lawa': 'Shampoo, LAWA',
  'shampoo_ema': 'Shampoo, EMA',
  'shampoo_polynomial': 'Shampoo, polynomial',
  'shampoo_lawa_best': 'Shampoo, LAWA, best in hindsight',
  'shampoo_ema_best': 'Shampoo, EMA, best in hindsight',
  'shampoo_polynomial_best': 'Shampoo, polynomial, best in hindsight',
  'shampoo_primal': 'Shampoo at its EMA',
  'shampoo_schedule_free': 'Shampoo, schedule-free',
}
TITLES = OVER_NADAMW | OVER_SHAMPOO
ORDER = tuple(TITLES)
# Without T: no schedule, no horizon.
FREE = ('nadamw_schedule_free', 'adamw_schedulefree', 'shampoo_schedule_free')
ALL = 'all runs'
_NOT_SEARCHED = '\\*'
_BEFORE_SEARCH = (
  f'{_NOT_SEARCHED} Not searched on a workload: the point of the base there.'
)


def place(row: Row) -> tuple[Any, ...]:
  """Return the key by which rows are sorted; methods as in the tables."""
  name = row['method']
  # A file may have a method of another version: it comes last.
  method = ORDER.index(name) if name in ORDER else len(ORDER)
  return row['workload'], method, name, row['seed'], row.get('fraction', 0.0)


def _title(data: pd.DataFrame, method: str) -> str:
  """Name of a method, marked where it was not searched on some workload."""
  own = data[data['method'] == method]
  return TITLES[method] + ('' if own['searched'].all() else _NOT_SEARCHED)


def _present(data: pd.DataFrame) -> list[str]:
  return [method for method in ORDER if (data['method'] == method).any()]


def _with_footnote(data: pd.DataFrame, text: str) -> str:
  return text if data['searched'].all() else f'{text}\n\n{_BEFORE_SEARCH}'


def medians(data: pd.DataFrame, column: str) -> pd.DataFrame:
  """Median over seeds: a row a method, a column a workload, and all runs.

  A workload on which a method has no run is NaN, and so is its last column.
  """
  by = data.groupby(['method', 'workload'])[column].agg(frame.median)
  found = by.unstack('workload').reindex(_present(data))
  workloads = sorted(found.columns)
  everything = data.groupby('method')[column].agg(frame.median)
  found = found.reindex(columns=workloads)
  found[ALL] = everything.where(found.notna().all(axis=1))
  return found


def _bold_lowest(column: pd.Series) -> list[str]:
  lowest = column[column.map(math.isfinite)].min()
  return [
    f'**{value:.2f}**' if value == lowest else tables.number(value)
    for value in column
  ]


def table(rows: Sequence[Row]) -> str:
  """Make the table of steps over those of NadamW; the lowest are bold.

  A dash means that half or more of the runs never reach the target within T.
  """
  data = frame.read(rows)
  found = medians(data, 'ratio_to_nadamw')
  columns = [_bold_lowest(found[name]) for name in found]
  names = [_title(data, method) for method in found.index]
  text = tables.markdown(
    ['method', *map(str, found.columns)], zip(names, *columns, strict=True)
  )
  return _with_footnote(data, text)


def final_metric(rows: Sequence[Row]) -> str:
  """Make the table of the best metric within T, as a gain over NadamW's.

  A gain is positive where the method is better, in units of the range of
  NadamW's own values over the seeds.
  """
  data = frame.read(rows)
  plain = data[data['method'] == 'nadamw']
  gains, _, _ = frame.gains(data, plain)
  data = data.assign(gain=gains)
  found = medians(data[data['gain'].notna()], 'gain')
  lines = [
    [_title(data, str(m)), *(tables.number(v, '+.2f') for v in found.loc[m])]
    for m in found.index
  ]
  header = ['method', *map(str, found.columns)]
  return _with_footnote(data, tables.markdown(header, lines))


def verdicts(rows: Sequence[Row]) -> str:
  """Make the table of numbers to reach: median ratios over all runs."""
  found = medians(frame.read(rows), 'ratio_to_nadamw')
  lines = []
  for text, methods, goal in (
    ('best average over NadamW', OVER_NADAMW, 0.80),
    ('best average over Shampoo', OVER_SHAMPOO, 0.70),
    ('NadamW, schedule-free', ('nadamw_schedule_free',), 0.88),
  ):
    own = found[found.index.isin(list(methods))][ALL]
    own = own.drop(['nadamw', 'shampoo'], errors='ignore').dropna()
    if not len(own):
      lines.append([text, f'{goal:.2f}', tables.UNKNOWN, tables.UNKNOWN])
      continue
    best = own.idxmin()
    lines.append(
      [text, f'{goal:.2f}', tables.number(own[best]), TITLES[str(best)]]
    )
  if 'nadamw_schedule_free' in found.index:
    latest = found.loc['nadamw_schedule_free'].drop(ALL)
    lines.append(
      [
        'NadamW, schedule-free, latest workload',
        '1.00',
        tables.number(latest.max(skipna=False)),
        str(latest.idxmax()) if latest.notna().all() else tables.UNKNOWN,
      ]
    )
  return tables.markdown(['median ratio', 'at most', 'found', 'by'], lines)


def levels_table(rows: Sequence[Row]) -> str:
  """Make the table of ratios at the levels of NadamW's raw weights.

  A value is the median over workloads and seeds.
  """
  data = frame.read(rows)
  lines = []
  for method in _present(data):
    own = data[data['method'] == method]
    values = own.groupby('fraction')['ratio'].agg(frame.median)
    cells = [tables.number(values.get(f)) for f in levels.FRACTIONS]
    lines.append([TITLES[method], *cells])
  header = [f'raw at {fraction:g} T' for fraction in levels.FRACTIONS]
  return tables.markdown(['method', *header], lines)


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """A heat map: ratio of each method on each workload, and of all runs."""
  found = medians(frame.read(rows), 'ratio_to_nadamw')
  found = found.rename(index=TITLES)
  height = 1.2 + 0.24 * len(found)
  with plots.panels(1, 1, 6.2, height) as (figure, panels):
    plots.heat_map(panels[0][0], found, low=0.5, high=1.1)
    panels[0][0].set_title('steps to target over those of NadamW')
    plots.save(figure, path)
