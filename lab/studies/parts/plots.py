"""Figures in one style."""

import contextlib
import math
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Hollow and of different shapes: points at the same place stay visible.
MARKERS = 'osD^vP*'
_STYLE: Any = {
  'axes.grid': True,
  'axes.titlesize': 'medium',
  'figure.dpi': 120,
  'figure.constrained_layout.use': True,
  'font.size': 9,
  'grid.color': '0.92',
  'legend.frameon': False,
  'lines.linewidth': 1.4,
}


@contextlib.contextmanager
def panels(
  rows: int, columns: int, width: float, height: float, **options: Any
) -> Iterator[tuple['Figure', np.ndarray]]:
  """A figure without a window, and its panels, [rows, columns].

  Args:
    rows: of panels.
    columns: of panels.
    width: of the figure, inches.
    height: of the figure, inches.
    **options: of `pyplot.subplots`.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  with pyplot.rc_context(_STYLE):
    figure, axes = pyplot.subplots(
      rows, columns, figsize=(width, height), squeeze=False, **options
    )
    try:
      yield figure, axes
    finally:
      pyplot.close(figure)


def save(figure: 'Figure', path: pathlib.Path) -> None:
  """Write a figure; its folder is made if missing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  # Without the version of the software, equal figures are equal files.
  figure.savefig(path, metadata={'Software': None})


def heat_map(
  axes: 'Axes', table: pd.DataFrame, low: float, high: float
) -> None:
  """Values as colours and numbers; gray, with a dash, where infinite.

  Args:
    axes: panel.
    table: a row and a column of the map for each of its own.
    low: value of the darkest colour.
    high: value of the lightest colour.
  """
  values = table.to_numpy(float)
  shown = np.ma.masked_invalid(values)
  axes.set_facecolor('0.88')
  axes.imshow(shown, vmin=low, vmax=high, cmap='viridis', aspect='auto')
  axes.grid(False)
  axes.set_xticks(range(len(table.columns)), table.columns, rotation=90)
  axes.set_yticks(range(len(table.index)), table.index)
  for (row, column), value in np.ndenumerate(values):
    dark = math.isfinite(value) and value < (low + high) / 2
    axes.text(
      column,
      row,
      f'{value:.2f}' if math.isfinite(value) else '–',
      ha='center',
      va='center',
      fontsize='small',
      color='white' if dark else 'black',
    )


def legend_above(figure: 'Figure', axes: 'Axes', columns: int) -> None:
  """One legend for all panels, above them, from the labels of one."""
  handles, labels = axes.get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside upper center', ncols=columns)
