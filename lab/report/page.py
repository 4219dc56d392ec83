"""report.html: one file with plotly, styles, tables and charts inside."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jinja2
import plotly.offline

from lab.report import charts, curve_data
from lab.report.formatting import Table
from lab.report.report import Report


def environment() -> jinja2.Environment:
  """Jinja2 that escapes all values: logs hold names of anybody's choice."""
  return jinja2.Environment(
    loader=jinja2.PackageLoader('lab.report', 'page_files'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )


def _cells(table: Table) -> list[dict[str, Any]]:
  """Rows with the text and the sorting value of each cell."""
  rows = []
  for row in table.rows:
    cells = []
    for column in table.columns:
      value = column.value(row)
      cells.append(
        {
          'text': column.show(row),
          'value': '' if value is None else value,
          'is_number': column.is_number,
        }
      )
    rows.append({'submission': row['submission'], 'cells': cells})
  return rows


def _plain(value: Any) -> Any:
  """Lists and dictionaries that JSON can hold; null where not finite."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def render(report: Report, tables: Sequence[Table]) -> str:
  """Text of the page."""
  template = environment().get_template('page.html')
  drawn = charts.all_charts(report)
  sections = [
    {'title': title, 'charts': list(group)}
    for title, group in itertools.groupby(drawn, key=lambda c: c.section)
  ]
  return template.render(
    report=report,
    submissions=[
      {'name': name, 'colour': curve_data.colour(i)}
      for i, name in enumerate(report.submissions)
    ],
    tables=[
      {
        'name': table.name,
        'title': table.title,
        'note': table.note,
        'columns': table.columns,
        'rows': _cells(table),
      }
      for table in tables
    ],
    sections=sections,
    figures=[_plain(chart.figure) for chart in drawn],
    plotly=plotly.offline.get_plotlyjs(),
  )
