"""The averages among which averaging_scheme='auto' chooses, as text.

A point of a search space names them in one string, separated by commas:

  raw             the weights that are trained
  ema HORIZON     fraction of T, in (0, 1]; `lawa HORIZON` likewise
  polynomial G    the power gamma, at least 0

>>> parse('raw, ema 0.1, polynomial 4')
(('raw', None), ('ema', 0.1), ('polynomial', 4.0))
"""

from collections.abc import Callable

from weightavg import coefficients
from weightavg.config_fields import in_interval

DEFAULT_CANDIDATES = 'raw, ema 0.01, ema 0.1, polynomial 4, polynomial 1.5'

_ARGUMENT = {
  'lawa': ('horizon', '(0, 1]'),
  'ema': ('horizon', '(0, 1]'),
  'polynomial': ('power', '[0, inf)'),
}


def _invalid(text: str, why: str) -> ValueError:
  return ValueError(f'Invalid averaging_candidates={text!r}. {why}')


def names(text: str) -> tuple[str, ...]:
  """Names of the candidates, in order, each with single spaces."""
  return tuple(' '.join(part.split()) for part in text.split(','))


def parse(text: str) -> tuple[tuple[str, float | None], ...]:
  """Kind and argument of every candidate, in order.

  Raises:
    ValueError: for none, an unknown one, one given twice or an argument that is
      missing or out of range.
  """
  result: list[tuple[str, float | None]] = []
  for name in names(text):
    kind, _, argument = name.partition(' ')
    if kind == 'raw' and not argument:
      candidate: tuple[str, float | None] = ('raw', None)
    elif kind in _ARGUMENT:
      candidate = (kind, _argument(text, kind, argument))
    else:
      raise _invalid(
        text,
        f'Unknown candidate {name!r}. Must be raw, lawa HORIZON, ema HORIZON '
        'or polynomial POWER, separated by commas.',
      )
    if candidate in result:
      raise _invalid(text, f'Candidate {name!r} is given twice.')
    result.append(candidate)
  if all(kind == 'raw' for kind, _ in result):
    raise _invalid(text, 'Must name at least one average.')
  return tuple(result)


def build(
  text: str, window_of: Callable[[float], int]
) -> coefficients.Candidates:
  """The candidates' schemes.

  Args:
    text: as `parse` takes it.
    window_of: samples in a horizon.
  """
  schemes: list[coefficients.Single | None] = []
  for kind, argument in parse(text):
    if argument is None:
      schemes.append(None)
    elif kind == 'polynomial':
      schemes.append(coefficients.Polynomial(argument))
    elif kind == 'lawa':
      schemes.append(coefficients.Lawa(window_of(argument)))
    else:
      decay = coefficients.decay_of_window(window_of(argument))
      schemes.append(coefficients.Ema(decay))
  return coefficients.Candidates(names(text), tuple(schemes))


def _argument(text: str, kind: str, argument: str) -> float:
  what, interval = _ARGUMENT[kind]
  try:
    value = float(argument)
  except ValueError:
    value = float('nan')
  if not in_interval(value, interval) or value == float('inf'):
    raise _invalid(
      text, f'The {what} of {kind} is {argument!r}. Must be in {interval}.'
    )
  return value
