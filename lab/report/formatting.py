"""Tables and numbers as text, for Markdown and for the page alike."""

import dataclasses
import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MISSING = '–'


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table.

  Args:
    key: Key of its values in a row.
    label: Heading.
    text: Formats a finite number or a string.
    is_number: Aligned right and sorted by value.
  """

  key: str
  label: str
  text: Callable[[Any], str] = str
  is_number: bool = True

  def show(self, row: Mapping[str, Any]) -> str:
    """Text of a cell."""
    value = self.value(row)
    return MISSING if value is None else self.text(value)

  def value(self, row: Mapping[str, Any]) -> Any:
    """Value of a cell; None where it is infinite or missing."""
    value = row.get(self.key)
    if value is None or isinstance(value, str):
      return value
    return value if math.isfinite(value) else None


@dataclasses.dataclass(frozen=True)
class Table:
  """A table with a title.

  Args:
    name: Identifier, for links.
    title: Heading.
    note: Explains what the numbers are.
    columns: Columns, the first of them a text.
    rows: Values by the columns' keys.
  """

  name: str
  title: str
  note: str
  columns: Sequence[Column]
  rows: Sequence[Mapping[str, Any]]

  def markdown(self) -> str:
    """The table with its heading, in GitHub's Markdown."""
    lines = [[escape_markdown(column.label) for column in self.columns]]
    lines.append(['--:' if c.is_number else '---' for c in self.columns])
    for row in self.rows:
      lines.append([escape_markdown(c.show(row)) for c in self.columns])
    text = '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
    note = escape_markdown(self.note)
    return f'## {escape_markdown(self.title)}\n\n{note}\n\n{text}\n'

  def text(self) -> str:
    """The table with its heading, in columns for a terminal."""
    lines = [[column.label for column in self.columns]]
    for row in self.rows:
      lines.append([' '.join(c.show(row).split()) for c in self.columns])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    aligned = [
      '  '.join(
        cell.rjust(width) if column.is_number else cell.ljust(width)
        for cell, width, column in zip(line, widths, self.columns, strict=True)
      ).rstrip()
      for line in lines
    ]
    return '\n'.join([self.title, *aligned])


def escape_markdown(text: str) -> str:
  r"""Escape what Markdown or HTML would read as markup.

  >>> escape_markdown('a|b <c>')
  'a\\|b &lt;c&gt;'
  """
  text = html.escape(text, quote=False)
  return re.sub(r'([\\`*\[\]|])', r'\\\1', ' '.join(text.split()))


def whole(value: float) -> str:
  """A rounded number with separators.

  >>> whole(25738.98)
  '25,739'
  """
  return f'{value:,.0f}'


def percent(value: float) -> str:
  """A fraction in per cent.

  >>> percent(0.1234)
  '12.3 %'
  """
  return f'{100 * value:.1f} %'


def three(value: float) -> str:
  """Three decimals."""
  return f'{value:.3f}'


def signed(value: float) -> str:
  """Three decimals and a sign."""
  return f'{value:+.3f}'


def significant(value: float) -> str:
  """Four significant digits."""
  return f'{value:.4g}'
