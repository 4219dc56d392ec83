"""The weights that a submission shows to evaluation, in either framework."""

from typing import Any

from lab.run.trial import TrialRun
from lab.studies.parts.training import Follower

# Name of the one curve.
SHOWN = 'shown'


class Shown(Follower):
  """Measures the validation metric at each evaluation, and nothing else.

  Args:
    evaluated_from: fraction of the budget before which nothing is evaluated.
  """

  def __init__(self, evaluated_from: float = 0.0) -> None:
    self._evaluated_from = evaluated_from
    self._curve: list[list[float]] = []

  def instead_of_evaluation(self, run: TrialRun, rng: Any) -> bool:
    """Extend the curve."""
    step = run.state.global_step
    if step >= self._evaluated_from * run.trial.budget:
      billed = run.state.train_state['accumulated_submission_time']
      self._curve.append([step, billed, run.measure('validation', rng)])
    return True

  def findings(self) -> dict[str, Any]:
    """The curve."""
    return {'curves': {SHOWN: self._curve}}
