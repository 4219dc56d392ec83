"""Hooks into a run: code that looks on without taking part in training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from lab.run.trial import TrialRun


class Observer:
  """Receives the events of a run; a subclass overrides those that it needs.

  An observer must leave training as it is: the weights, the optimizer's state
  and the random numbers. No checkpoint holds its state. Its time is not billed,
  except that of `before_update`. `run.trial` has what stays the same,
  `run.state` what changes.

  >>> class Steps(Observer):
  ...   seen = 0
  ...
  ...   def after_step(self, run):
  ...     self.seen = run.state.global_step
  """

  def at_start(self, run: 'TrialRun') -> None:
    """Called once, with the initial or the restored state."""

  def before_update(self, run: 'TrialRun', batch: Any) -> None:
    """Called with what `data_selection` returned, before `update_params`."""

  def after_step(self, run: 'TrialRun') -> None:
    """Called after `update_params`, before any evaluation."""

  def instead_of_evaluation(self, run: 'TrialRun', rng: Any) -> bool:
    """Called when an evaluation is due, after `prepare_for_eval`.

    Returns:
      True if the run's own evaluation, with its log and its checkpoint, is to
      be left out.
    """
    return False

  def at_evaluation(self, run: 'TrialRun', metrics: dict[str, Any]) -> None:
    """Called with the metrics of an evaluation, before they are logged."""


class Observers(Observer):
  """Hands each event to several observers, in order."""

  def __init__(self, observers: Sequence[Observer]) -> None:
    self._observers = tuple(observers)

  def at_start(self, run: 'TrialRun') -> None:
    """Hand the event on."""
    for observer in self._observers:
      observer.at_start(run)

  def before_update(self, run: 'TrialRun', batch: Any) -> None:
    """Hand the event on."""
    for observer in self._observers:
      observer.before_update(run, batch)

  def after_step(self, run: 'TrialRun') -> None:
    """Hand the event on."""
    for observer in self._observers:
      observer.after_step(run)

  def instead_of_evaluation(self, run: 'TrialRun', rng: Any) -> bool:
    """True if one of the observers says so; all are called."""
    return any([o.instead_of_evaluation(run, rng) for o in self._observers])

  def at_evaluation(self, run: 'TrialRun', metrics: dict[str, Any]) -> None:
    """Hand the event on."""
    for observer in self._observers:
      observer.at_evaluation(run, metrics)
