"""Tables and a figure of the cost of a wrong learning rate and a wrong T."""

import math
import pathlib
from collections.abc import Sequence

import pandas as pd
from matplotlib.ticker import NullLocator

from lab.studies.parts import frame, plots, tables
from lab.studies.parts.frame import Row
from lab.studies.parts.primal_tables import ORDER, TITLES

# A setting: multiples of the learning rate, of T, and of the planned T.
Setting = tuple[float, float, float]
AT_T: Setting = (1.0, 1.0, 1.0)
_KEYS = ['rate', 'budget', 'planned']
RATES: dict[str, Setting] = {
  'x1/4': (0.25, 1.0, 1.0),
  'x1/2': (0.5, 1.0, 1.0),
  'x1': AT_T,
  'x2': (2.0, 1.0, 1.0),
  'x4': (4.0, 1.0, 1.0),
}
BUDGETS: dict[str, Setting] = {
  'T/2, plans for T': (1.0, 0.5, 1.0),
  'T/2, plans for T/2': (1.0, 0.5, 0.5),
  '2 T, plans for T': (1.0, 2.0, 1.0),
  '2 T, plans for 2 T': (1.0, 2.0, 2.0),
}


def _at(data: pd.DataFrame, setting: Setting) -> pd.DataFrame:
  return data[(data[_KEYS] == list(setting)).all(axis=1)]


def losses(data: pd.DataFrame) -> pd.DataFrame:
  """Add 'loss': what a setting loses of a method's best metric, in percent.

  It is relative to the same method's run at T at its own rate, on the same
  workload and seed, and positive where the setting is worse. A run without a
  finite value loses infinitely much.
  """
  keys = ['method', 'workload', 'seed']
  own = _at(data, AT_T).set_index(keys)['best_validation'].astype(float)
  index = pd.MultiIndex.from_frame(data[keys])
  reference = own.reindex(index).to_numpy()
  sign = data['higher_is_better'].map({True: -1.0, False: 1.0})
  best = data['best_validation'].astype(float)
  loss = 100.0 * sign * (best - reference) / abs(reference)
  # Adding 0 turns -0 into 0.
  return data.assign(loss=loss.where(best.notna(), math.inf) + 0.0)


def _medians(
  data: pd.DataFrame, settings: dict[str, Setting], column: str
) -> pd.DataFrame:
  """Median over workloads and seeds: a row a method, a column a setting.

  NaN where a method lacks a workload or a seed that NadamW has at T: medians of
  unequal runs do not compare. A method that does so in all settings has no row.
  """
  whole = len(_at(data[data['method'] == 'nadamw'], AT_T))
  found, complete = {}, set()
  for name, setting in settings.items():
    by = _at(data, setting).groupby('method')[column]
    is_complete = by.size() == whole
    found[name] = by.agg(frame.median).where(is_complete)
    complete |= set(is_complete.index[is_complete])
  return pd.DataFrame(found).reindex([m for m in ORDER if m in complete])


def _markdown(found: pd.DataFrame, spec: str) -> str:
  lines = [
    [TITLES[str(m)], *(tables.number(v, spec) for v in found.loc[m])]
    for m in found.index
  ]
  return tables.markdown(['method', *map(str, found.columns)], lines)


def steps_table(rows: Sequence[Row]) -> str:
  """Make the table of steps to target at other learning rates.

  Values are medians over workloads and seeds, as multiples of the steps of
  NadamW's raw weights at its own rate.
  """
  return _markdown(_medians(frame.read(rows), RATES, 'ratio_to_nadamw'), '.2f')


def rates_table(rows: Sequence[Row]) -> str:
  """Make the table of the best metric that other learning rates lose, in %."""
  return _markdown(_medians(losses(frame.read(rows)), RATES, 'loss'), '+.2f')


def budgets_table(rows: Sequence[Row]) -> str:
  """Make the table of the best metric that other budgets lose, in %.

  The difference between the two columns of a budget is the price of a wrong T.
  """
  return _markdown(_medians(losses(frame.read(rows)), BUDGETS, 'loss'), '+.2f')


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """Loss against the learning rate, and at other budgets."""
  data = losses(frame.read(rows))
  rates = _medians(data, RATES, 'loss')
  budgets = _medians(data, BUDGETS, 'loss')
  with plots.panels(1, 2, 11, 4.2) as (figure, panels):
    for number, method in enumerate(rates.index):
      style = {
        'marker': plots.MARKERS[number % len(plots.MARKERS)],
        'color': f'C{number % 10}',
        'markerfacecolor': 'none',
        'label': TITLES[str(method)],
      }
      panels[0][0].plot([0.25, 0.5, 1, 2, 4], rates.loc[method], **style)
      if method in budgets.index:
        style['linestyle'] = ''
        panels[0][1].plot(range(len(BUDGETS)), budgets.loc[method], **style)
    panels[0][0].set(
      xscale='log',
      xlabel='learning rate, multiple of the point',
      ylabel='best metric lost, %',
      yscale='symlog',
    )
    panels[0][0].set_xticks([0.25, 0.5, 1, 2, 4], list(RATES))
    # Labels of a logarithmic axis would lie upon these.
    panels[0][0].xaxis.set_minor_locator(NullLocator())
    panels[0][1].set(yscale='symlog')
    panels[0][1].set_xticks(range(len(BUDGETS)), list(BUDGETS))
    for axes in panels[0]:
      axes.axhline(0.0, color='black', linewidth=0.5)
    plots.legend_above(figure, panels[0][0], 4)
    plots.save(figure, path)
