"""Figures as PNG and PDF, by matplotlib."""

import functools
import math
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib import ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from lab.report import curve_data, hyperparameters
from lab.report.report import Report

_DPI = 110
_STYLE: Any = {
  # Text is wider at some resolutions, so the layout needs that of the file.
  'figure.dpi': _DPI,
  'font.size': 9,
  'axes.grid': True,
  'grid.alpha': 0.3,
  'axes.axisbelow': True,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'legend.frameon': False,
  # TrueType, so that the text of a PDF can be searched and edited.
  'pdf.fonttype': 42,
}
_LINE_STYLES = {'solid': '-', 'dash': '--', 'dot': ':', 'dashdot': '-.'}
# No dates or versions: the same logs give the same files.
_METADATA = {'png': {'Software': None}, 'pdf': {'CreationDate': None}}
_PANEL = (3.6, 2.7)
# Panels in a row.
_COLUMNS = 3
_AXES = {'steps': 'steps', 'seconds': 'billed seconds'}


def plain(text: str) -> str:
  """A name that matplotlib draws literally: no mathematics, no hidden label."""
  return ('\u200b' + text if text.startswith('_') else text).replace('$', r'\$')


def _labels(report: Report) -> dict[str, str]:
  """Labels of the submissions as matplotlib's text."""
  labels = curve_data.labels(report.submissions)
  return {name: plain(label) for name, label in labels.items()}


def save_all(report: Report, folder: pathlib.Path) -> list[str]:
  """Draw all figures that the logs give rise to; returns their names."""
  folder.mkdir(parents=True)
  drawn = []
  with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
    # Names of any script are drawn as boxes where no font has their letters.
    warnings.filterwarnings('ignore', message='Glyph .* missing from font')
    for name, draw in _figures(report).items():
      figure = draw(report)
      # Placed once, not for each format again.
      figure.draw_without_rendering()
      figure.set_layout_engine('none')
      for kind, metadata in _METADATA.items():
        path = folder / f'{name}.{kind}'
        figure.savefig(path, dpi=_DPI, metadata=metadata)
      drawn.append(name)
  return drawn


def _figures(
  report: Report,
) -> dict[str, Callable[[Report], matplotlib.figure.Figure]]:
  known: dict[str, Callable[[Report], matplotlib.figure.Figure]] = {
    'profiles': profiles
  }
  # Logs may hold no base workload.
  if set(report.workloads) & set(report.ratios.columns):
    known['time_to_target'] = time_to_target
  known |= {
    'steps_to_target': steps_to_target,
    'metric_by_steps': functools.partial(metric_curves, by='steps'),
    'metric_by_time': functools.partial(metric_curves, by='seconds'),
  }
  for name, table in report.sweeps.items():
    if len(table):
      known[name] = functools.partial(sweep, name=name)
  return known


def _panels(count: int) -> tuple[matplotlib.figure.Figure, list[Axes]]:
  """A grid of panels."""
  columns = min(_COLUMNS, count)
  rows = math.ceil(count / columns)
  size = (_PANEL[0] * columns, _PANEL[1] * rows + 0.6)
  figure = matplotlib.figure.Figure(figsize=size, layout='constrained')
  axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
  for empty in axes[count:]:
    empty.set_visible(False)
  return figure, axes[:count]


def _legend(figure: matplotlib.figure.Figure, axes: Sequence[Axes]) -> None:
  """One legend below all panels."""
  entries: dict[str, Artist] = {}
  for ax in axes:
    for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
      entries.setdefault(label, handle)
  # Inches of an entry: its line, and its label at the size of the style.
  widest = 0.6 + 0.08 * max(map(len, entries), default=0)
  figure.legend(
    list(entries.values()),
    list(entries),
    loc='outside lower center',
    ncols=max(1, min(4, int(figure.get_figwidth() / widest))),
  )


def _line(report: Report, submission: str) -> dict[str, Any]:
  index = report.submissions.index(submission)
  return {
    'color': curve_data.colour(index),
    'linestyle': _LINE_STYLES[curve_data.dash(index)],
  }


def profiles(report: Report) -> matplotlib.figure.Figure:
  """Performance profile of each submission."""
  figure = matplotlib.figure.Figure(figsize=(7, 4.2), layout='constrained')
  ax = figure.subplots()
  scores = report.scores.set_index('submission')['score']
  labels = _labels(report)
  for name in report.submissions:
    row = report.profiles.loc[name]
    label = f'{labels[name]} ({scores[name]:.3f})'
    taus = row.index.to_numpy(dtype=float)
    ax.step(taus, row, where='post', label=label, **_line(report, name))
  ax.set(
    xlabel='time relative to the fastest submission, tau',
    ylabel='fraction of workloads',
    ylim=(0, 1.02),
  )
  figure.legend(loc='outside right upper')
  return figure


def time_to_target(report: Report) -> matplotlib.figure.Figure:
  """Heat map of the time relative to the fastest submission."""
  names, workloads = report.submissions, report.workloads
  base = [w for w in workloads if w in report.ratios.columns]
  ratios = report.ratios.loc[names, base].to_numpy(dtype=float)
  medians = report.medians.pivot(
    index='submission', columns='workload', values='seconds'
  ).reindex(index=names, columns=base)
  size = (1.6 + 0.95 * max(len(base), 3), 1.3 + 0.36 * len(names))
  figure = matplotlib.figure.Figure(figsize=size, layout='constrained')
  ax = figure.subplots()
  image = ax.imshow(
    np.where(np.isfinite(ratios), ratios, np.nan),
    cmap='viridis_r',
    vmin=1.0,
    vmax=4.0,
    aspect='auto',
  )
  for (i, j), seconds in np.ndenumerate(medians.to_numpy(dtype=float)):
    text = f'{seconds:,.0f}' if math.isfinite(seconds) else '–'
    dark = math.isfinite(ratios[i, j]) and ratios[i, j] > 2.2
    color = 'white' if dark else 'black'
    ax.text(j, i, text, ha='center', va='center', color=color, size=7)
  ax.set_xticks(range(len(base)), base, rotation=30, ha='right')
  ax.set_yticks(range(len(names)), list(_labels(report).values()))
  ax.grid(False)
  figure.colorbar(image, label='time / fastest')
  ax.set_title('Seconds to target')
  return figure


def steps_to_target(report: Report) -> matplotlib.figure.Figure:
  """Bars of the steps to target as a fraction of the budget."""
  figure, axes = _panels(len(report.workloads))
  keyed = report.medians.set_index(['workload', 'submission'])
  names, labels = report.submissions, list(_labels(report).values())
  for panel, (ax, workload) in enumerate(
    zip(axes, report.workloads, strict=True)
  ):
    longest = 1.0
    for i, name in enumerate(names):
      key = (workload, name)
      value = keyed['fraction_of_budget'].get(key, math.nan)
      if math.isfinite(value):
        longest = max(longest, value)
        ax.barh(i, value, color=curve_data.colour(i))
        ax.text(value, i, f' {value:.2f}', va='center', size=7)
      else:
        ax.text(0.02, i, 'missed' if key in keyed.index else 'no logs',
                va='center', size=7, alpha=0.6)  # fmt: skip
    ax.axvline(1.0, color='grey', linewidth=0.8)
    # The names at the left are those of the whole row.
    texts = labels if panel % _COLUMNS == 0 else [''] * len(names)
    ax.set_yticks(range(len(names)), texts, size=7)
    ax.set_ylim(len(names) - 0.5, -0.5)
    # Leaves room for the number beside the longest bar.
    ax.set_xlim(0, 1.18 * longest)
    ax.set_title(workload)
    ax.grid(False, axis='y')
  figure.supxlabel('steps to target / step hint')
  return figure


def metric_curves(report: Report, by: str) -> matplotlib.figure.Figure:
  """Validation metric against steps or billed time, a panel a workload."""
  figure, axes = _panels(len(report.workloads))
  curves, labels = curve_data.curves(report), _labels(report)
  for ax, workload in zip(axes, report.workloads, strict=True):
    goal = report.targets.goals[workload]
    drawn = [c for c in curves if c.workload == workload]
    for curve in drawn:
      ax.plot(
        getattr(curve, by),
        curve.values,
        label=labels[curve.submission],
        linewidth=0.9,
        **_line(report, curve.submission),
      )
    ax.axhline(goal.target, color='black', linewidth=0.8, linestyle=':')
    ax.set_ylim(*curve_data.value_range(drawn, goal))
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
    ax.set(title=workload, ylabel=goal.metric, xlabel=_AXES[by])
  _legend(figure, axes)
  return figure


def sweep(report: Report, name: str) -> matplotlib.figure.Figure:
  """Steps to target against a hyperparameter, with the fits."""
  table = report.sweeps[name]
  workloads = [w for w in report.workloads if w in set(table['workload'])]
  figure, axes = _panels(len(workloads))
  numeric = name in hyperparameters.NUMERIC
  labels = _labels(report)
  fits = {
    (row['submission'], row['workload']): row
    for row in report.fits.get(name, [])
  }
  for ax, workload in zip(axes, workloads, strict=True):
    rows = table[table['workload'] == workload]
    for submission, group in rows.groupby('submission'):
      style = _line(report, str(submission))
      reached = group[np.isfinite(group['fraction_of_budget'])]
      missed = group[~np.isfinite(group['fraction_of_budget'])]
      label = labels[str(submission)]
      ax.scatter(reached['value'], reached['fraction_of_budget'], s=14,
                 color=style['color'], label=label)  # fmt: skip
      # Trials that miss are marked at the upper edge.
      ax.scatter(missed['value'], np.ones(len(missed)), s=18, marker='x',
                 color=style['color'], transform=ax.get_xaxis_transform(),
                 clip_on=False)  # fmt: skip
      if fitted := fits.get((str(submission), workload)):
        ax.plot(*fit_line(fitted), linewidth=0.9, **style)
    if numeric:
      # Set, since matplotlib finds no limits where every trial misses.
      ax.set_xscale('log')
      ax.set_xlim(rows['value'].min() / 1.2, rows['value'].max() * 1.2)
    ax.set_ylim(0, curve_data.sweep_top(rows))
    ax.set(title=workload, xlabel=f'{name} (crosses: missed)')
  figure.supylabel('steps to target / step hint')
  _legend(figure, axes)
  return figure


def fit_line(fitted: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
  """Points of a fitted parabola within the range measured."""
  x = np.linspace(math.log10(fitted['lowest']), math.log10(fitted['highest']))
  return 10**x, np.polynomial.polynomial.polyval(x, fitted['coefficients'])
