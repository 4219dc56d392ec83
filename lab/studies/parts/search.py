"""A search over hyperparameters: its points, and when a trial is hopeless.

The median rule: trials come in cohorts. The first cohort trains to its end. A
later trial is looked at after 1/3 and 2/3 of its steps; it ends there if the
best value that it or one of its averages has had is worse than the median of
the trials of earlier cohorts that got that far. The limits of a cohort follow
from finished trials alone, so that a search that is resumed, or run by other
numbers of processes, stops the same trials.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from scipy.stats import qmc

from lab.core import search_space
from lab.core.errors import InputError
from lab.run.trial import TrialRun
from lab.studies.parts.averages import Averages

# Stated once, for all workloads and methods; a workload whose model or loss
# lacks one of the last two goes without.
RANGES: dict[str, dict[str, Any]] = {
  'learning_rate': {'min': 1e-3, 'max': 5e-2, 'scaling': 'log'},
  'one_minus_beta1': {'min': 0.02, 'max': 0.5, 'scaling': 'log'},
  'one_minus_beta2': {'min': 1e-3, 'max': 0.4, 'scaling': 'log'},
  'weight_decay': {'min': 5e-3, 'max': 1.0, 'scaling': 'log'},
  'warmup_factor': {'min': 0.02, 'max': 0.1, 'scaling': 'log'},
  'dropout_rate': {'feasible_points': [0.0, 0.1]},
  'label_smoothing': {'feasible_points': [0.0, 0.1, 0.2]},
}
RUNGS = (1 / 3, 2 / 3)
COHORT = 8


def check_ranges(ranges: Any, where: str) -> None:
  """Raise InputError unless these are ranges to search, none of them empty."""
  if not isinstance(ranges, dict) or set(ranges) != set(RANGES):
    raise InputError(
      f'Invalid ranges in {where}. Must be an object with the keys '
      f'{", ".join(RANGES)}.'
    )
  for name, span in ranges.items():
    search_space.check_range(name, span, where)
    if 'min' in span and span['min'] == span['max']:
      raise InputError(
        f'Invalid range of {name!r} in {where}: min={span["min"]!r}, '
        f'max={span["max"]!r}. Must be numbers with min < max.'
      )


def points(
  ranges: Mapping[str, Mapping[str, Any]], count: int, seed: int
) -> list[dict[str, Any]]:
  """The first points of a scrambled Halton sequence over the ranges.

  More points begin with the same ones.
  """
  rows = qmc.Halton(len(ranges), scramble=True, rng=seed).random(count)
  return [
    {
      name: search_space.value_at(dict(span), u)
      for (name, span), u in zip(ranges.items(), row.tolist(), strict=True)
    }
    for row in rows
  ]


def is_better(value: float, other: float, higher_is_better: bool) -> bool:
  """Return True if a value beats another; NaN is worse than any value."""
  if math.isnan(value) or math.isnan(other):
    return math.isnan(other) and not math.isnan(value)
  return value > other if higher_is_better else value < other


def limits(
  trials: Iterable[Mapping[str, Any]], higher_is_better: bool
) -> list[float | None]:
  """The median at each rung of the trials that got there; None: no limit.

  Args:
    trials: results of earlier cohorts, with 'rungs', the best value at each
      rung that a trial got to; NaN where it had none.
    higher_is_better: direction of the values.
  """
  trials = list(trials)
  worst = -math.inf if higher_is_better else math.inf
  found: list[float | None] = []
  for rung in range(len(RUNGS)):
    values = [t['rungs'][rung] for t in trials if len(t['rungs']) > rung]
    values = [worst if math.isnan(value) else value for value in values]
    median = statistics.median(values) if values else worst
    found.append(None if math.isinf(median) else median)
  return found


class Trial(Averages):
  """Averages of a trial that ends where it is hopeless.

  Every second evaluation is left out: on the small workloads, evaluating all
  candidates takes longer than the training between evaluations. The last step
  is always evaluated.

  Args:
    candidates: as in `Averages`.
    limits: the value at each rung than which it must not be worse; None: any.
  """

  rule: ClassVar[tuple[str, ...]] = (*Averages.rule, Averages.__module__)

  def __init__(
    self,
    candidates: Mapping[str, Mapping[str, Any]],
    limits: Sequence[float | None] = (None,) * len(RUNGS),
  ) -> None:
    super().__init__(candidates, evaluated_from=RUNGS[0])
    self._limits = limits
    self._due = 0
    self._best = math.nan
    self._rungs: list[float] = []
    self._stopped: int | None = None

  def instead_of_evaluation(self, run: TrialRun, rng: Any) -> bool:
    """Measure every average; at a rung, compare the best with the limit."""
    step, budget = run.state.global_step, run.trial.budget
    self._due += 1
    if self._due % 2 and step < budget:
      return True
    super().instead_of_evaluation(run, rng)
    higher = run.trial.workload.higher_is_better
    for value in self.latest():
      if is_better(value, self._best, higher):
        self._best = value
    rung = len(self._rungs)
    if rung < len(RUNGS) and step >= RUNGS[rung] * budget:
      self._rungs.append(self._best)
      limit = self._limits[rung]
      hopeless = limit is not None and is_better(limit, self._best, higher)
      if (hopeless or math.isnan(self._best)) and step < budget:
        self._stopped = step
        run.stop()
    return True

  def findings(self) -> dict[str, Any]:
    """Curves, the best value at each rung, and the step of an early end."""
    more = {'rungs': self._rungs, 'stopped': self._stopped}
    return super().findings() | more
