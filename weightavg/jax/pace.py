"""The quantities that change by step: learning rate and cadence of samples.

Both are computed on the host, in float64, and handed to the compiled step as
numbers: a schedule that is planned by the clock compiles nothing anew.
"""

from typing import Any, NamedTuple

import numpy as np

from weightavg import spec
from weightavg.averaging_config import AveragingConfig
from weightavg.clock import Clock, time_limit
from weightavg.clock_plan import ClockPlan
from weightavg.learning_rate import factor, factor_at
from weightavg.schemes import Ema
from weightavg.submission_config import SubmissionConfig

# Fields of a plan before its list of means, which is short of `_MEANS` at
# first: a checkpoint holds arrays of fixed shapes.
_FIELDS = (
  'longest',
  'seconds',
  'total',
  'step',
  'elapsed',
  'next_plan',
  'anchor_step',
  'anchor_position',
  'dropped',
  'block_sum',
  'block_count',
)
_INTEGERS = ('longest', 'total', 'step', 'next_plan', 'anchor_step')
_MEANS = 5


class Pace(NamedTuple):
  """Numbers of one step.

  Attributes:
    learning_rate: of this step; float32.
    every: steps between two samples; int32.
    start: step before which nothing is sampled; int32.
    share: 1 - decay of an exponential average at which training takes place,
      whose horizon follows T; float32, 1 for any other.
  """

  learning_rate: Any
  every: Any
  start: Any
  share: Any


class Pacer:
  """The schedule of a run and, if it has one, the clock that plans it.

  Args:
    workload: gives the step hint and the time limit.
    config: of the submission.
    is_self_tuning: whether the time limit is that of the self-tuning ruleset.
    steps_per_epoch: for a scheme that samples once per epoch.

  Raises:
    ValueError: the clock is to plan, and the workload has no time limit.
  """

  def __init__(
    self,
    workload: spec.Workload,
    config: SubmissionConfig,
    is_self_tuning: bool,
    steps_per_epoch: int | None,
  ) -> None:
    self._schedule = config.schedule
    self._peak = config.optimizer.learning_rate
    self._averaging: AveragingConfig = config.averaging
    self._epoch = steps_per_epoch
    self.budget = config.schedule.budget(workload.step_hint)
    self.clock: Clock | None = None
    self._follow(self.budget)
    if config.schedule.planned_by == 'clock':
      limit = time_limit(workload, is_self_tuning)
      self.clock = Clock(ClockPlan(self.budget, limit))
      self.clock.add_follower(self._follow)

  def _follow(self, total: int) -> None:
    start = None
    if self.clock is not None:
      start = self.clock.plan.step_of(self._averaging.averaging_start)
    self._sampling = self._averaging.sampling(total, self._epoch, start)
    scheme = self._averaging.scheme_in(total, self._epoch)
    self._share = 1.0
    if isinstance(scheme, Ema):
      assert scheme.decay is not None, 'scheme_in() gives that of a horizon'
      self._share = 1.0 - scheme.decay

  def at(self, step: int) -> Pace:
    """Return the numbers of the step after `step` steps."""
    schedule = self._schedule
    curve = schedule.warmup_factor, schedule.schedule
    if self.clock is None:
      steps = max(1, round(schedule.schedule_factor * self.budget))
      share = factor(step, steps, *curve, schedule.warmup_steps)
    else:
      position = self.clock.plan.position(step) / schedule.schedule_factor
      share = factor_at(position, *curve)
    return Pace(
      np.array(self._peak * share, np.float32),
      np.array(self._sampling.every, np.int32),
      np.array(self._sampling.start, np.int32),
      np.array(self._share, np.float32),
    )

  def saved(self) -> np.ndarray:
    """The plan as bytes: float64 would not survive jax's conversions."""
    if self.clock is None:
      return np.zeros(1, np.uint8)
    state = self.clock.state_dict()
    means = state['means'] + [0.0] * (_MEANS - len(state['means']))
    numbers = [*(state[name] for name in _FIELDS), len(state['means']), *means]
    return np.array(numbers, np.float64).view(np.uint8)

  def restore(self, saved: np.ndarray) -> None:
    """Continue a saved plan.

    Raises:
      ValueError: for a plan with another time limit or number of steps.
    """
    if self.clock is None:
      return
    numbers = np.array(saved, np.uint8).view(np.float64).tolist()
    state: dict[str, Any] = dict(zip(_FIELDS, numbers, strict=False))
    for name in _INTEGERS:
      state[name] = int(state[name])
    count, *means = numbers[len(_FIELDS) :]
    self.clock.load_state_dict({**state, 'means': means[: int(count)]})
