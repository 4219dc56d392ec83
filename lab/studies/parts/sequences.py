"""Measure the three sequences of primal averaging along one run."""

from typing import Any, ClassVar

from lab.run.trial import TrialRun
from lab.studies.parts.averages import Averages

X, Y, Z = 'x', 'y', 'z'


class Sequences(Averages):
  """Measures x, y, z and averages of y.

  Args:
    candidates: as in `Averages`: y, and the averages of it.
    interpolation: mu, the share of x in y.
    evaluated_from: fraction of the budget before which nothing is evaluated.
  """

  rule: ClassVar[tuple[str, ...]] = (*Averages.rule, Averages.__module__)

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
    parameters = [p.data for p in run.state.model_params.parameters()]
    self._measure(X, run, rng)
    x = [p.clone() for p in parameters]
    own.swap_out()
    super().instead_of_evaluation(run, rng)
    # The averager's shown weights may lie in other storages.
    parameters = [p.data for p in run.state.model_params.parameters()]
    y = [p.clone() for p in parameters]
    for p, of_x, of_y in zip(parameters, x, y, strict=True):
      p.copy_((of_y - self._mu * of_x) / (1.0 - self._mu))
    self._measure(Z, run, rng)
    for p, of_y in zip(parameters, y, strict=True):
      p.copy_(of_y)
    own.swap_in()
    return True

  def _measure(self, name: str, run: TrialRun, rng: Any) -> None:
    seconds = run.state.train_state['accumulated_submission_time']
    curve = self._curves['validation'].setdefault(name, [])
    value = run.measure('validation', rng)
    curve.append([run.state.global_step, seconds, value])
