"""Which checkpoints enter an average, and with which weights.

`--every k` takes each k-th checkpoint, counted back from the one that the
average is for, so that this one is always among them.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from lab.core.errors import InputError
from lab.offline.series import Series
from weightavg import coefficients
from weightavg.coefficients import Ema, Lawa, Polynomial


@dataclasses.dataclass(frozen=True)
class Weighted:
  """Given weights, in the order of the inputs; they need not sum to one."""

  values: tuple[float, ...]

  def weights(self, count: int) -> list[float]:
    """The weights; `count` must be their number."""
    assert count == len(self.values)
    return list(self.values)


Scheme = coefficients.Single | Weighted


@dataclasses.dataclass(frozen=True)
class Plan:
  """One average to be made.

  Args:
    inputs: positions in the series, oldest first.
    scheme: over those inputs.
    recipe: how it is described in the output's metadata.
  """

  inputs: tuple[int, ...]
  scheme: Scheme
  recipe: dict[str, Any]

  @property
  def weights(self) -> list[float]:
    """Weight of each input."""
    return self.scheme.weights(len(self.inputs))


def taken(at: int, every: int) -> list[int]:
  """Positions up to `at`, each `every`-th counted back from it.

  >>> taken(at=6, every=3)
  [0, 3, 6]
  """
  return list(range(at % every, at + 1, every))


def plan(series: Series, scheme: Scheme, at: int, every: int) -> Plan:
  """The average at the position `at` of a series.

  Raises:
    InputError: there are fewer checkpoints than the window.
  """
  inputs = taken(at, every)
  if isinstance(scheme, Lawa):
    if len(inputs) < scheme.window:
      raise InputError(
        f'Invalid window={scheme.window}. At step {series.steps[at]} there are '
        f'{len(inputs)} checkpoints'
        + (f' at every={every}.' if every > 1 else '.')
      )
    inputs = inputs[-scheme.window :]
  recipe = {
    'scheme': type(scheme).__name__.lower(),
    **dataclasses.asdict(scheme),
    'every': every,
    'step': series.steps[at],
  }
  return Plan(tuple(inputs), scheme, recipe)


def schemes(
  name: str,
  *,
  windows: Sequence[int] = (),
  decays: Sequence[float] = (),
  horizons: Sequence[float] = (),
  powers: Sequence[float] = (),
  steps_between: float = 0.0,
  budget: int = 0,
) -> Iterator[tuple[dict[str, Any], coefficients.Single]]:
  """Schemes of one kind, each with the knob that sets it apart.

  Args:
    name: lawa, ema or polynomial.
    windows: samples, for lawa.
    decays: per sample, for ema.
    horizons: fractions of the budget, for either.
    powers: for polynomial; 4 if none is given.
    steps_between: steps between two samples, for horizons.
    budget: T, for horizons.

  Raises:
    InputError: a knob is missing, without effect or out of range.
  """
  allowed = {
    'lawa': {'window': windows, 'horizon': horizons},
    'ema': {'decay': decays, 'horizon': horizons},
    'polynomial': {'power': powers},
  }[name]
  given = {
    'window': windows,
    'decay': decays,
    'horizon': horizons,
    'power': powers,
  }
  for knob, values in given.items():
    if values and knob not in allowed:
      raise InputError(f'Invalid {knob}. It has no effect with scheme={name}.')
  if name == 'polynomial':
    for power in powers or (4.0,):
      _check('power', power, 0 <= power < float('inf'), '[0, inf)')
      yield {'power': power}, Polynomial(power)
    return
  if not any(allowed.values()):
    raise InputError(f'Missing {" or ".join(allowed)} for scheme={name}.')
  for window in windows:
    _check('window', window, window >= 1, '[1, inf)')
    yield {'window': window}, Lawa(window)
  for decay in decays:
    _check('decay', decay, 0 <= decay < 1, '[0, 1)')
    yield {'decay': decay}, Ema(decay)
  for horizon in horizons:
    _check('horizon', horizon, 0 < horizon <= 1, '(0, 1]')
    window = coefficients.samples_in_horizon(horizon * budget, steps_between)
    made: coefficients.Single = Lawa(window)
    if name == 'ema':
      made = Ema(coefficients.decay_of_window(window))
    yield {'horizon': horizon}, made


def _check(name: str, value: float, valid: bool, interval: str) -> None:
  if not valid:
    raise InputError(f'Invalid {name}={value}. Must be in {interval}.')


def output_paths(template: str, knobs: Sequence[dict[str, Any]]) -> list[str]:
  """A path for each output, from a template such as 'avg_{window}_{at}.pt'.

  Raises:
    InputError: two outputs would have the same path.
  """
  paths = []
  for values in knobs:
    try:
      paths.append(template.format(**values))
    except (KeyError, IndexError, ValueError) as error:
      raise InputError(
        f'Invalid output={template!r}. Placeholders are '
        f'{", ".join("{" + k + "}" for k in values)}.'
      ) from error
  for a, b in itertools.combinations(range(len(paths)), 2):
    if paths[a] == paths[b]:
      varying = [k for k in knobs[a] if knobs[a][k] != knobs[b].get(k)]
      raise InputError(
        f'Invalid output={template!r}. There are {len(paths)} outputs: it must '
        f'hold {" and ".join("{" + k + "}" for k in varying)}.'
      )
  return paths
