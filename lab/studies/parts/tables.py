"""Rows as Markdown."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate

UNKNOWN = '–'
NEVER = 'not reached'
# Fractions of T are not exact in binary.
ROUNDING = 1e-9


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
  """A table; cells are shown as they are."""
  return tabulate(list(lines), header, tablefmt='github', disable_numparse=True)


def number(value: Any, spec: str = '.2f', missing: str = UNKNOWN) -> str:
  """A value that may be None, NaN or infinite.

  >>> number(0.123), number(math.inf), number(None)
  ('0.12', '–', '–')
  """
  return (
    missing if value is None or not math.isfinite(value) else f'{value:{spec}}'
  )


def signed(value: float | None) -> str:
  """A difference of fractions of T; infinite where one run never arrives.

  >>> signed(0.02), signed(0.0), signed(-math.inf), signed(math.nan)
  ('+0.02', '0', '-∞', '–')
  """
  if value is None or math.isnan(value):
    return UNKNOWN
  if math.isinf(value):
    return '∞' if value > 0 else '-∞'
  return '0' if abs(value) < ROUNDING else f'{value:+.2f}'


def percent(value: float) -> str:
  """A fraction as a percentage, without digits that are not needed.

  >>> percent(0.005), percent(0.1)
  ('0.5 %', '10 %')
  """
  return f'{100 * value:g} %'
