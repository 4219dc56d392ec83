"""Measure the three sequences of primal averaging along one run."""

from typing import Any, ClassVar

from lab.run.trial import TrialRun
from lab.studies.parts import held_weights
from lab.studies.parts.averages import Averages
from lab.studies.parts.held_weights import holding, weights_of

X, Y, Z = 'x', 'y', 'z'


class Sequences(Averages):
  """Measures x, y, z and averages of y.

  Args:
    candidates: as in `Averages`: y, and the averages of it.
    interpolation: mu, the share of x in y.
    evaluated_from: fraction of the budget before which nothing is evaluated.
  """

  rule: ClassVar[tuple[str, ...]] = (
    *Averages.rule,
    Averages.__module__,
    held_weights.__name__,
  )

  def __init__(
    self,
    candidates: Any,
    interpolation: float,
    evaluated_from: float = 0.0,
  ) -> None:
    super().__init__(candidates, evaluated_from)
    self._mu = interpolation

  def instead_of_evaluation(self, run: TrialRun, rng: Any) -> bool:
    """Measure every candidate; the model shows x before and after."""
    if run.state.global_step < self._evaluated_from * run.trial.budget:
      return True
    own = run.state.optimizer_state['averager']
    self._measure(X, run, rng)
    x = weights_of(run)
    own.swap_out()
    super().instead_of_evaluation(run, rng)
    y = weights_of(run)
    z = [
      (of_y - self._mu * of_x) / (1.0 - self._mu)
      for of_x, of_y in zip(x, y, strict=True)
    ]
    with holding(run, z):
      self._measure(Z, run, rng)
    own.swap_in()
    return True

  def _measure(self, name: str, run: TrialRun, rng: Any) -> None:
    seconds = run.state.train_state['accumulated_submission_time']
    curve = self._curves['validation'].setdefault(name, [])
    value = run.measure('validation', rng)
    curve.append([run.state.global_step, seconds, value])
