"""Plan averages: which checkpoints enter, and with which weights.

`--every k` uses each k-th checkpoint, counted back from the last one, so that
the last one is always among them.
"""

import dataclasses
import itertools
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lab.core.errors import InputError
from lab.offline.series import Series
from weightavg import schemes as averaging_schemes
from weightavg.config_fields import in_interval
from weightavg.schemes import Recursive, Windowed

# A larger number of steps is not exact as a float.
_MOST_STEPS = 2**53


@dataclasses.dataclass(frozen=True)
class Weighted:
  """Given weights, in the order of the inputs; they need not sum to one."""

  values: tuple[float, ...]

  def weights(self, count: int) -> list[float]:
    """Return the weights; `count` must be their number."""
    assert count == len(self.values)
    return list(self.values)


Scheme = Recursive | Windowed | Weighted


@dataclasses.dataclass(frozen=True)
class AveragePlan:
  """The inputs, scheme and description of one average.

  Args:
    inputs: positions in the series, oldest first.
    scheme: scheme over these inputs.
    recipe: description for the output's metadata.
  """

  inputs: tuple[int, ...]
  scheme: Scheme
  recipe: dict[str, Any]

  @property
  def weights(self) -> list[float]:
    """Weight of each input."""
    return self.scheme.weights(len(self.inputs))


def budget_of(asked: int | None, last_step: int) -> int:
  """Return T in steps: as asked for, or the last step.

  Raises:
    InputError: for a budget that is out of range.
  """
  if asked is not None and not 1 <= asked <= _MOST_STEPS:
    raise InputError(f'Invalid budget={asked}. Must be in [1, 2^53].')
  return last_step if asked is None else asked


def taken(at: int, every: int) -> list[int]:
  """Return each `every`-th position up to `at`, counted back from it.

  >>> taken(at=6, every=3)
  [0, 3, 6]
  """
  return list(range(at % every, at + 1, every))


def plan(series: Series, scheme: Scheme, at: int, every: int) -> AveragePlan:
  """Plan the average at the position `at` of a series.

  Raises:
    InputError: the window is longer than the series.
  """
  inputs = taken(at, every)
  if isinstance(scheme, Windowed):
    if len(inputs) < scheme.size:
      raise InputError(
        f'Invalid window={scheme.size}. At step {series.steps[at]} there are '
        f'{len(inputs)} checkpoints'
        + (f' at every={every}.' if every > 1 else '.')
      )
    inputs = inputs[-scheme.size :]
  recipe = {
    **described(scheme),
    'every': every,
    'step': series.steps[at],
  }
  return AveragePlan(tuple(inputs), scheme, recipe)


def described(scheme: Scheme) -> dict[str, Any]:
  """Return the scheme's name and fields as plain values.

  >>> described(averaging_schemes.Lawa(window=5))
  {'scheme': 'lawa', 'window': 5}
  """
  name = 'weighted' if isinstance(scheme, Weighted) else scheme.name
  fields = dataclasses.asdict(scheme).items()
  return {'scheme': name} | {k: v for k, v in fields if v is not None}


def averages() -> dict[str, type[averaging_schemes.Scheme]]:
  """Return the registered schemes that average checkpoints, by name."""
  return {
    name: scheme
    for name, scheme in averaging_schemes.SCHEMES.items()
    if issubclass(scheme, Recursive | Windowed)
  }


def lengths_of(scheme: type[averaging_schemes.Scheme]) -> dict[str, Any]:
  """Return the numeric fields of a scheme, which set its length, by name."""
  return {
    field.name: field
    for field in dataclasses.fields(scheme)
    if field.metadata['kind'] in (int, float)
  }


def all_lengths() -> dict[str, Any]:
  """Return the numeric fields of all schemes, by name."""
  return {
    name: field
    for scheme in averages().values()
    for name, field in lengths_of(scheme).items()
  }


def schemes(
  name: str,
  lengths: Mapping[str, Sequence[float]],
  *,
  steps_between: float = 0.0,
  budget: int = 0,
) -> Iterator[tuple[dict[str, Any], Any]]:
  """Yield one scheme for each value of each field, with that field.

  Args:
    name: name of the scheme.
    lengths: values of its fields; horizons are fractions of the budget.
    steps_between: steps between two samples, for horizons.
    budget: T in steps, for horizons.

  Raises:
    InputError: a field is missing, without effect or out of range.
  """
  scheme = averages()[name]
  allowed = lengths_of(scheme)
  given = {field: values for field, values in lengths.items() if values}
  for field in given:
    if field not in allowed:
      raise InputError(f'Invalid {field}. It has no effect with scheme={name}.')
  if not given:
    defaults = {n: f.default for n, f in allowed.items() if f.default}
    if not defaults:
      raise InputError(f'Missing {" or ".join(allowed)} for scheme={name}.')
    given = {n: (value,) for n, value in defaults.items()}

  def samples_in(fraction: float) -> int:
    return max(1, round(fraction * budget / steps_between))

  for field, values in given.items():
    interval = allowed[field].metadata['allowed']
    for value in values:
      if not in_interval(value, interval):
        raise InputError(f'Invalid {field}={value}. Must be in {interval}.')
      yield {field: value}, scheme(**{field: value}).resolved(samples_in)


# Widths and precisions of a few digits: 06, .3f.
_FORMAT = re.compile(r'0?\d{0,2}(\.\d{1,2})?[a-zA-Z]?')


def _check_template(template: str) -> None:
  """Raise ValueError for placeholders that are more than a name and a width."""
  for _, name, style, conversion in string.Formatter().parse(template):
    if name is None:
      continue
    if (
      not name.isidentifier()
      or conversion
      or not _FORMAT.fullmatch(style or '')
    ):
      raise ValueError(name)


def output_paths(template: str, fields: Sequence[dict[str, Any]]) -> list[str]:
  """Fill a template such as 'avg_{window}_{at}.pt' for each output.

  Raises:
    InputError: two outputs would have the same path.
  """
  paths = []
  for values in fields:
    try:
      _check_template(template)
      paths.append(template.format(**values))
    except (KeyError, IndexError, ValueError) as error:
      raise InputError(
        f'Invalid output={template[:200]!r}. Placeholders are '
        f'{", ".join("{" + k + "}" for k in values)}.'
      ) from error
  for a, b in itertools.combinations(range(len(paths)), 2):
    if paths[a] == paths[b]:
      varying = [k for k in fields[a] if fields[a][k] != fields[b].get(k)]
      if not varying:
        same = ', '.join(f'{k}={v}' for k, v in fields[a].items())
        raise InputError(f'Invalid outputs. Two are the same: {same}.')
      raise InputError(
        f'Invalid output={template[:200]!r}. There are {len(paths)} outputs: '
        f'it must hold {" and ".join("{" + k + "}" for k in varying)}.'
      )
  return paths
