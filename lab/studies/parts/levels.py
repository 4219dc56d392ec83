"""Find where a curve reaches the levels of another one.

Every value that a run reaches is a possible target. The level at a fraction f
of T is the best value that the raw weights have had up to step f T; their
arrival there is the step of that value. An average's arrival is the step at
which its best value so far passes the level, interpolated linearly between two
evaluations, which are 2 % of T apart, or, in trials of a search, up to 5.3 %.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Fractions of T at which the raw weights set a level.
FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9)


def _best_so_far(values: Sequence[float | None], higher: bool) -> np.ndarray:
  """Best value up to each evaluation, as a loss: lower is better."""
  losses = np.array([math.nan if v is None else v for v in values], float)
  losses = -losses if higher else losses
  return np.minimum.accumulate(np.where(np.isnan(losses), math.inf, losses))


def arrival(
  steps: Sequence[float],
  values: Sequence[float | None],
  level: float,
  higher: bool,
) -> float | None:
  """Return the step at which a curve reaches a level; None where it never does.

  Args:
    steps: of the evaluations, ascending.
    values: of the metric; None or NaN where it was not finite.
    level: value to reach.
    higher: direction of the metric.

  >>> arrival([10, 20, 30], [3.0, 2.0, 1.0], 1.5, higher=False)
  25.0
  """
  best = _best_so_far(values, higher)
  goal = -level if higher else level
  (there,) = np.nonzero(best <= goal)
  if not len(there):
    return None
  first = int(there[0])
  if first == 0 or math.isinf(best[first - 1]):
    return float(steps[first])
  before, after = best[first - 1], best[first]
  share = (before - goal) / (before - after)
  return float(steps[first - 1] + share * (steps[first] - steps[first - 1]))


def of_run(
  result: Mapping[str, Any],
  names: Iterable[str],
  fractions: Sequence[float] = FRACTIONS,
) -> dict[float, dict[str, float | None]]:
  """Return `ratios` of some averages of a run.

  Args:
    result: of a finished run.
    names: of curves; 'raw' among them.
    fractions: as in `ratios`.
  """
  curves = result['curves']
  return ratios(
    [step for step, *_ in curves['raw']],
    {name: [value for *_, value in curves[name]] for name in names},
    result['budget_steps'],
    result['higher_is_better'],
    fractions,
  )


def ratios(
  steps: Sequence[float],
  curves: Mapping[str, Sequence[float | None]],
  budget: int,
  higher: bool,
  fractions: Sequence[float] = FRACTIONS,
) -> dict[float, dict[str, float | None]]:
  """Return steps of each average as a multiple of the raw weights'.

  Args:
    steps: of the evaluations, shared by all curves.
    curves: name to values; 'raw' among them.
    budget: T, in steps.
    higher: direction of the metric.
    fractions: of T, at which the raw weights set a level.

  Returns:
    Fraction to name to ratio; None where the average never arrives. A fraction
    at which the raw weights have had no finite value is left out. So is one
    whose level they had at the first evaluation already: an average may have
    been there for long.
  """
  best = _best_so_far(curves['raw'], higher)
  found: dict[float, dict[str, float | None]] = {}
  for fraction in fractions:
    # Fractions of T are not exact in binary.
    place = int(np.searchsorted(steps, fraction * budget + 1e-6)) - 1
    if place < 1 or math.isinf(best[place]) or best[place] == best[0]:
      continue
    level = -best[place] if higher else best[place]
    own = arrival(steps, curves['raw'], level, higher)
    assert own is not None
    found[fraction] = {
      name: None if step is None else step / own
      for name, values in curves.items()
      if name != 'raw'
      for step in [arrival(steps, values, level, higher)]
    }
  return found
