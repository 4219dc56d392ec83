"""Measure averages along a run, corrected for their lag."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lab.run.trial import TrialRun
from lab.studies.parts import held_weights
from lab.studies.parts.averages import Averages
from lab.studies.parts.held_weights import holding, weights_of
from weightavg.pytorch import multi_tensor

# Fraction of T between two snapshots, and between two updates of BEMA.
EVERY = 0.002
# BEMA's rho: weights are powers of rho + t, t being the step.
_RHO = 10.0
# BEMA's kappa: the weights of step t enter its EMA with (rho + t)^-kappa.
_KAPPA = 0.5


def corrected(name: str, factor: float) -> str:
  """Name an average that is corrected by a multiple of its lag."""
  return f'{name} + {factor:g}'


def bema(eta: float) -> str:
  """Name BEMA with (rho + t)^-eta times the distance from the start."""
  return f'bema {eta:g}'


class Corrected(Averages):
  """Measures averages, and the same corrected for their lag.

  An EMA that lags L steps behind misses what the weights w have moved since,
  about L (w - w') / (t - t'), with w' of step t' = t - 2 L. A factor of this is
  added.

  BEMA (Block and Zhang 2025, arXiv 2508.00180) adds (rho + t)^-eta (w - w_0) to
  an EMA into which the weights of step t enter with (rho + t)^-kappa.

  Args:
    candidates: as in `Averages`.
    lags: of the averages that are corrected, as fractions of T, by name.
    factors: multiples of the lag.
    etas: powers of BEMA.
    evaluated_from: fraction of the budget before which nothing is evaluated.
  """

  rule: ClassVar[tuple[str, ...]] = (
    *Averages.rule,
    Averages.__module__,
    held_weights.__name__,
  )

  def __init__(
    self,
    candidates: Mapping[str, Mapping[str, Any]],
    lags: Mapping[str, float],
    factors: Sequence[float],
    etas: Sequence[float],
    evaluated_from: float = 0.0,
  ) -> None:
    super().__init__(candidates, evaluated_from)
    self._lags, self._factors, self._etas = lags, factors, etas
    self._snapshots: collections.deque[tuple[int, list[Tensor]]] = (
      collections.deque()
    )

  def at_start(self, run: TrialRun) -> None:
    """Keep the weights of the start."""
    super().at_start(run)
    self._start = weights_of(run)
    self._ema = weights_of(run)
    budget = run.trial.budget
    self._every = max(1, round(EVERY * budget))
    self._oldest = 2.0 * max(self._lags.values()) * budget

  def after_step(self, run: TrialRun) -> None:
    """Update every average, and keep a snapshot where one is due."""
    super().after_step(run)
    step = run.state.global_step
    if step % self._every:
      return
    now = weights_of(run)
    if multi_tensor.all_finite(now):
      torch._foreach_lerp_(self._ema, now, (_RHO + step) ** -_KAPPA)
    self._snapshots.append((step, now))
    # One that is older than the longest lag needs stays.
    while len(self._snapshots) > 1 and (
      self._snapshots[1][0] <= step - self._oldest
    ):
      self._snapshots.popleft()

  def instead_of_evaluation(self, run: TrialRun, rng: Any) -> bool:
    """Measure every average, corrected and not."""
    step, budget = run.state.global_step, run.trial.budget
    super().instead_of_evaluation(run, rng)
    if step < self._evaluated_from * budget:
      return True
    now = weights_of(run)
    for name, fraction in self._lags.items():
      lag = fraction * budget
      then, past = self._before(step - 2.0 * lag)
      moved = torch._foreach_sub(now, past)
      torch._foreach_mul_(moved, lag / max(step - then, 1))
      with self._averagers[name].evaluating():
        average = weights_of(run)
        for factor in self._factors:
          weights = torch._foreach_add(average, moved, alpha=factor)
          with holding(run, weights):
            self._measure(corrected(name, factor), name, run, rng)
    distance = torch._foreach_sub(now, self._start)
    first = next(iter(self._averagers))
    for eta in self._etas:
      alpha = (_RHO + step) ** -eta
      weights = torch._foreach_add(self._ema, distance, alpha=alpha)
      with holding(run, weights):
        self._measure(bema(eta), first, run, rng)
    return True

  def _before(self, step: float) -> tuple[int, list[Tensor]]:
    """Return the last snapshot at or before a step, or the oldest one."""
    found = self._snapshots[0]
    for snapshot in self._snapshots:
      if snapshot[0] > step:
        break
      found = snapshot
    return found

  def _measure(self, name: str, timed_as: str, run: TrialRun, rng: Any) -> None:
    curves = self._curves['validation']
    at = curves[timed_as][-1][:2]
    curves.setdefault(name, []).append([*at, run.measure('validation', rng)])
