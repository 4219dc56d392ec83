"""The runs that the claims share.

A claim describes the runs that it reads by these functions; the same
description is the same run, which is trained once. Averages follow a run
without touching it, so each kind of run has one fixed set of them.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from lab.studies.claims import averages
from lab.studies.claims.averages import Followed
from lab.studies.parts.training import Follower, Training, tuned_point
from weightavg.optimizers.primal import (
  PRIMAL_DEFAULTS,
  SCHEDULE_FREE_DEFAULTS,
)

# Submissions that exist for studies only.
LOOKAHEAD, INVERSE_SQRT = 'lookahead', 'inverse_sqrt'
# No average is as good as the raw weights are at half of T any sooner.
EVALUATED_FROM = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Training):
  """A training whose length and batch size may differ from the workload's.

  Args:
    length: examples of the run, as a multiple of step hint x batch size; T
      follows.
    batch_factor: batch size as a multiple of the workload's, at the same number
      of examples: T is shorter by this factor.
  """

  length: float = 1.0
  batch_factor: float = 1.0
  follower: type[Follower] = Followed
  # Runs outlive a change of targets: `Shelf` adds those of the day.
  needs_target: bool = False

  def build(self) -> Any:
    """Build the workload with this length and batch size."""
    workload = super().build()
    examples = self.length * workload.step_hint * workload.batch_size
    workload.batch_size = max(1, round(self.batch_factor * workload.batch_size))
    workload.steps = max(1, round(examples / workload.batch_size))
    return workload

  def scaled(self, length: float, every: int) -> 'Run':
    """Shorten the run and measure fewer of its evaluations."""
    return dataclasses.replace(
      self,
      length=length * self.length,
      follows={**self.follows, 'every': every},
    )


@functools.cache
def _tuned(workload: str, optimizer: str) -> dict[str, Any]:
  return tuned_point(workload, optimizer)


def _run(
  workload: str,
  seed: int,
  submission: str = 'nadamw',
  *,
  optimizer: str = 'nadamw',
  rate: float = 1.0,
  changes: Mapping[str, Any] | None = None,
  follows: Mapping[str, Any] | None = None,
  **fields: Any,
) -> Run:
  """A run at the tuned point of an optimizer, with changes to the point."""
  point = _tuned(workload, optimizer) | dict(changes or {})
  point['learning_rate'] *= rate
  standard = {
    'candidates': averages.STANDARD,
    'evaluated_from': EVALUATED_FROM,
  }
  return Run(
    workload=workload,
    submission=submission,
    point=point,
    seed=seed,
    follows=standard | dict(follows or {}),
    **fields,
  )


def tuned(workload: str, seed: int) -> Run:
  """NadamW at its tuned point, with the averages of all claims."""
  return _run(workload, seed, follows={'candidates': averages.WIDE})


def shampoo(workload: str, seed: int) -> Run:
  """Shampoo at its tuned point."""
  return _run(workload, seed, 'shampoo', optimizer='shampoo')


def at_rate(workload: str, seed: int, rate: float) -> Run:
  """NadamW at a multiple of its tuned learning rate.

  The run at 1 is the tuned one, whose set of averages is wider.
  """
  if rate == 1.0:
    return tuned(workload, seed)
  return _run(workload, seed, rate=rate)


def on_schedule(
  workload: str, seed: int, schedule: str, rate: float = 1.0
) -> Run:
  """NadamW with another schedule of the learning rate.

  Args:
    workload: its name.
    seed: of the run.
    schedule: one of the submission's, or 'inverse_sqrt'.
    rate: multiple of the tuned learning rate, the schedule's peak.
  """
  if schedule == 'cosine':
    return at_rate(workload, seed, rate)
  if schedule == INVERSE_SQRT:
    return _run(
      workload,
      seed,
      INVERSE_SQRT,
      rate=rate,
      changes={'schedule': 'constant'},
    )
  return _run(workload, seed, rate=rate, changes={'schedule': schedule})


def of_length(workload: str, seed: int, length: float) -> Run:
  """NadamW trained for a multiple of the step hint, on a schedule as long."""
  if length == 1.0:
    return tuned(workload, seed)
  return _run(workload, seed, length=length)


def of_batch(workload: str, seed: int, factor: float) -> Run:
  """NadamW with another batch size at the same number of examples and rate."""
  if factor == 1.0:
    return tuned(workload, seed)
  return _run(workload, seed, batch_factor=factor)


def in_epochs(workload: str, seed: int, passes: int = 1) -> Run:
  """NadamW with Kaddour's averages, measured from the first evaluation on.

  Args:
    workload: its name.
    seed: of the run.
    passes: over the training data; 1 draws every batch anew.
  """
  candidates = {averages.RAW: averages.STANDARD[averages.RAW]}
  candidates |= averages.WINDOWED
  follows: dict[str, Any] = {'candidates': candidates, 'evaluated_from': 0.0}
  if averages.has_batch_norm(workload):
    name = averages.window(averages.WINDOW)
    current = {'averaging_batch_norm': 'current'}
    candidates[f'{name} {averages.CURRENT}'] = candidates[name] | current
    follows['recomputed'] = [name]
  return _run(workload, seed, follows=follows, epochs=passes)


# Submissions that train at their average: changes to NadamW's tuned point.
PRIMAL: dict[str, Mapping[str, Any]] = {
  'nadamw_primal': PRIMAL_DEFAULTS,
  'nadamw_schedule_free': SCHEDULE_FREE_DEFAULTS,
}


def primal(workload: str, seed: int, submission: str, rate: float) -> Run:
  """A submission that trains at its average, at NadamW's tuned point otherwise.

  Args:
    workload: its name.
    seed: of the run.
    submission: one of `PRIMAL`.
    rate: multiple of NadamW's tuned learning rate.
  """
  return _run(workload, seed, submission, rate=rate, changes=PRIMAL[submission])


def lookahead(workload: str, seed: int) -> Run:
  """NadamW inside Lookahead at NadamW's tuned point."""
  return _run(workload, seed, LOOKAHEAD)
