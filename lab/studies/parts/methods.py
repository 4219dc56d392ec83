"""The methods that searches tune: what each one searches, in which terms.

All methods share the ranges of `lab.studies.parts.search`. A method without a
hyperparameter searches its own one in that place of the quasi-random sequence,
and further ones behind the shared ones. So the k-th trials of two methods on a
workload have the same values wherever both have the hyperparameter.

Ranges of their own have a reason each:

- `one_minus_interpolation`, 1 - mu: that of `one_minus_beta1`, since mu takes
  the place of the momentum.
- `averaging_horizon`: the horizons of the averages that follow the trials of
  NadamW and Shampoo, 0.5 % to 20 % of T.
- `one_plus_power`, 1 + r: from the uniform mean (1) to the span of the shortest
  polynomial average that follows those trials, a twentieth of the steps so far.
- `warmup_steps`: a schedule-free method knows no T, so that its warm-up cannot
  be a fraction of it. The range in steps is one for all workloads. It contains
  the warm-ups that `warmup_factor` allows the other methods on the four local
  workloads (45 to 1,125 steps), rounded outwards.
- Lookahead's k and alpha: the values that its paper compares.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from weightavg.optimizers.primal import (
  PRIMAL_DEFAULTS,
  SCHEDULE_FREE_DEFAULTS,
)

Point = Mapping[str, Any]
Ranges = Mapping[str, Mapping[str, Any]]

REGULARIZERS = ('dropout_rate', 'label_smoothing')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
  """A searched value and the submission's hyperparameter that follows from it.

  Args:
    key: of the submission.
    of_searched: value for the submission.
    of_point: value in the terms of a search.
  """

  key: str
  of_searched: Callable[[float], Any]
  of_point: Callable[[Any], float]


def _one_minus(value: float) -> float:
  return 1.0 - value


_BETA2 = {
  'one_minus_beta2': Term(
    key='beta2', of_searched=_one_minus, of_point=_one_minus
  )
}
_INTERPOLATION = {
  'one_minus_interpolation': Term(
    key='averaging_interpolation', of_searched=_one_minus, of_point=_one_minus
  )
}
_WITHOUT_BUDGET = {
  'warmup_steps': Term(key='warmup_steps', of_searched=round, of_point=float),
  'one_plus_power': Term(
    key='schedule_free_power',
    of_searched=lambda value: value - 1.0,
    of_point=lambda power: power + 1.0,
  ),
}

_HORIZON = {
  'averaging_horizon': {'min': 0.005, 'max': 0.2, 'scaling': 'log'},
}
_LOOKAHEAD: Ranges = {
  'lookahead_every': {'feasible_points': [5, 10]},
  'lookahead_alpha': {'feasible_points': [0.5, 0.8]},
}
_POWER = {'one_plus_power': {'min': 1.0, 'max': 20.0, 'scaling': 'log'}}
_WARMUP = {
  'warmup_factor': (
    'warmup_steps',
    {'min': 40.0, 'max': 1200.0, 'scaling': 'log'},
  )
}
# The momentum is off: mu takes its place.
_MU_FOR_MOMENTUM: dict[str, tuple[str, None]] = {
  'one_minus_beta1': ('one_minus_interpolation', None)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """A method that is searched.

  Args:
    base: method whose tuned point it has, changed by `start`, before its own
      search; None for NadamW.
    start: the point from the base's.
    replaced: shared hyperparameter to the one that is searched in its place
      and that one's range; None for the same range.
    added: further ranges.
    terms: hyperparameters that a search has in other terms.
    fixed: hyperparameters that are not searched.
    shows_average: whether evaluation sees an average that took part in
      training. Averages that watch then follow no trial: the result of a trial
      is what the submission shows.
  """

  base: str | None = None
  start: Callable[[Point], dict[str, Any]] = dict
  replaced: Mapping[str, tuple[str, Mapping[str, Any] | None]] = (
    dataclasses.field(default_factory=dict)
  )
  added: Ranges = dataclasses.field(default_factory=dict)
  terms: Mapping[str, Term] = dataclasses.field(default_factory=dict)
  fixed: Point = dataclasses.field(default_factory=dict)
  shows_average: bool = False

  def ranges(self, shared: Ranges) -> dict[str, dict[str, Any]]:
    """Return the ranges of the method's search, in the order of the sequence.

    Args:
      shared: of all methods.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, span in shared.items():
      own, own_span = self.replaced.get(name, (name, None))
      found[own] = dict(own_span or span)
    return found | {name: dict(span) for name, span in self.added.items()}

  def point(self, searched: Point) -> dict[str, Any]:
    """Put a searched point in the submission's terms."""
    rest = {k: v for k, v in searched.items() if k not in self.terms}
    converted = {
      self.terms[k].key: self.terms[k].of_searched(v)
      for k, v in searched.items()
      if k in self.terms
    }
    return {**self.fixed, **rest, **converted}

  def searched(self, point: Point) -> dict[str, Any]:
    """Put a point of the submission in the terms of a search."""
    found = dict(point)
    for name, term in self.terms.items():
      if term.key in found:
        found[name] = term.of_point(found.pop(term.key))
    return found


def _in_shampoo_terms(point: Point) -> dict[str, Any]:
  """Put NadamW's point in Shampoo's terms; a beta2 not given stays so."""
  return METHODS['nadamw'].searched(point)


def _without_budget(point: Point) -> dict[str, Any]:
  """Replace a warm-up that is a fraction of T by 2 / (1 - beta2) steps.

  Ma and Yarats 2021 (1910.04209).
  """
  rest = {k: v for k, v in point.items() if k != 'warmup_factor'}
  memory = point.get('one_minus_beta2', 1.0 - point.get('beta2', 0.999))
  return rest | {
    'warmup_steps': round(2.0 / memory),
    'schedule_free_power': 0.0,
  }


def _without_momentum(defaults: Point) -> Callable[[Point], dict[str, Any]]:
  """Replace the momentum by an average with a submission's defaults."""
  return lambda point: {**point, **defaults}


def _schedule_free(point: Point) -> dict[str, Any]:
  """Replace warm-up, momentum and schedule, with the submission's defaults."""
  return _without_budget(point) | SCHEDULE_FREE_DEFAULTS


METHODS: dict[str, Method] = {
  'nadamw': Method(terms=_BETA2),
  'shampoo': Method(base='nadamw', start=_in_shampoo_terms),
  'nadamw_primal': Method(
    base='nadamw',
    start=_without_momentum(PRIMAL_DEFAULTS),
    replaced=_MU_FOR_MOMENTUM,
    added=_HORIZON,
    terms=_BETA2 | _INTERPOLATION,
    fixed=PRIMAL_DEFAULTS,
    shows_average=True,
  ),
  'shampoo_primal': Method(
    base='shampoo',
    start=_without_momentum(PRIMAL_DEFAULTS),
    replaced=_MU_FOR_MOMENTUM,
    added=_HORIZON,
    terms=_INTERPOLATION,
    fixed=PRIMAL_DEFAULTS,
    shows_average=True,
  ),
  'nadamw_schedule_free': Method(
    base='nadamw',
    start=_schedule_free,
    replaced={**_MU_FOR_MOMENTUM, **_WARMUP},
    added=_POWER,
    terms=_BETA2 | _INTERPOLATION | _WITHOUT_BUDGET,
    fixed=SCHEDULE_FREE_DEFAULTS,
    shows_average=True,
  ),
  'shampoo_schedule_free': Method(
    base='shampoo',
    start=_schedule_free,
    replaced={**_MU_FOR_MOMENTUM, **_WARMUP},
    added=_POWER,
    terms=_INTERPOLATION | _WITHOUT_BUDGET,
    fixed=SCHEDULE_FREE_DEFAULTS,
    shows_average=True,
  ),
  # Its beta1 is mu, so that NadamW's momentum is its interpolation.
  'adamw_schedulefree': Method(
    base='nadamw',
    start=_without_budget,
    replaced=_WARMUP,
    added=_POWER,
    terms=_BETA2 | _WITHOUT_BUDGET,
    shows_average=True,
  ),
  'lookahead': Method(
    base='nadamw',
    start=lambda point: {
      **point,
      'lookahead_every': 5,
      'lookahead_alpha': 0.5,
    },
    added=_LOOKAHEAD,
    terms=_BETA2,
    shows_average=True,
  ),
}
# The package's submissions over NadamW that train at their average.
NADAMW_AT_AVERAGE = ('nadamw_primal', 'nadamw_schedule_free')
