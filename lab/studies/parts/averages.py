"""Averages that follow a run, and are evaluated in its place."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lab.run.trial import TrialRun
from lab.studies.parts.training import Follower, Training, tuned_point
from weightavg import AveragingConfig
from weightavg.pytorch import Averager


class Averages(Follower):
  """Keeps several averages of one run; each evaluation measures every one.

  Averaging never touches training, so that each curve is, bit for bit, that of
  a run of the average's own submission, at a fraction of the cost. The seconds
  of a curve are those billed for training and those of its own average.

  Args:
    candidates: name to the fields of an AveragingConfig.
    evaluated_from: fraction of the budget before which nothing is evaluated.
    splits: evaluated splits; the curves are those of the first one, and the
      rest come as '<split>_curves'.
  """

  rule: ClassVar[tuple[str, ...]] = ('weightavg.sampling', 'weightavg.schemes')

  def __init__(
    self,
    candidates: Mapping[str, Mapping[str, Any]],
    evaluated_from: float = 0.0,
    splits: Sequence[str] = ('validation',),
  ) -> None:
    self._candidates = candidates
    self._evaluated_from = evaluated_from
    self._curves: dict[str, dict[str, list[list[float]]]] = {
      split: {} for split in splits
    }
    self._averagers: dict[str, Averager] = {}
    self._seconds = dict.fromkeys(candidates, 0.0)

  def at_start(self, run: TrialRun) -> None:
    """Make the averages of the new model."""
    self._averagers = {
      name: Averager.from_config(
        run.state.model_params,
        AveragingConfig.from_point(**fields),
        run.trial.budget,
      )
      for name, fields in self._candidates.items()
    }

  def after_step(self, run: TrialRun) -> None:
    """Update every average."""
    for name, averager in self._averagers.items():
      start = time.perf_counter()
      averager.update()
      self._seconds[name] += time.perf_counter() - start

  def instead_of_evaluation(self, run: TrialRun, rng: Any) -> bool:
    """Measure every average; nothing else is evaluated."""
    if run.state.global_step < self._evaluated_from * run.trial.budget:
      return True
    billed = run.state.train_state['accumulated_submission_time']
    for name, averager in self._averagers.items():
      start = time.perf_counter()
      averager.swap_in()
      self._seconds[name] += time.perf_counter() - start
      for split, curves in self._curves.items():
        curves.setdefault(name, []).append(
          [
            run.state.global_step,
            billed + self._seconds[name],
            run.measure(split, rng),
          ]
        )
      averager.swap_out()
    return True

  def latest(self) -> list[float]:
    """The last values on the first split; none before the first evaluation."""
    curves = next(iter(self._curves.values()))
    return [curve[-1][2] for curve in curves.values()]

  def findings(self) -> dict[str, Any]:
    """The curves, and the seconds that each average took."""
    first, *rest = self._curves
    return {
      'curves': self._curves[first],
      **{f'{split}_curves': self._curves[split] for split in rest},
      'averaging_seconds': self._seconds,
    }


def followed(
  workload: str,
  optimizer: str,
  seed: int,
  candidates: Mapping[str, Mapping[str, Any]],
) -> Training:
  """Describe a run at the tuned point that several averages follow."""
  return Training(
    workload=workload,
    submission=optimizer,
    point=tuned_point(workload, optimizer),
    seed=seed,
    follower=Averages,
    follows={'candidates': candidates},
    columns={'optimizer': optimizer},
  )
