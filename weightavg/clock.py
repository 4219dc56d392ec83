"""Measure the time that a run is billed for, and plan its schedule by it."""

import math
import time
from collections.abc import Callable
from typing import Any

from absl import logging

from weightavg import spec
from weightavg.clock_plan import ClockPlan, Measurement

# AlgoPerf's rules allow the self-tuning ruleset one and a half times the time.
_SELF_TUNING_FACTOR = 1.5


def time_limit(workload: spec.Workload, is_self_tuning: bool) -> float:
  """Seconds that a run on a workload may take.

  Raises:
    ValueError: the workload gives no time.
  """
  try:
    seconds = workload.max_allowed_runtime_sec
  except (AttributeError, NotImplementedError):
    seconds = None
  if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
    raise ValueError(
      f"Invalid budget='clock'. Must be 'steps' on {type(workload).__name__}, "
      f'whose max_allowed_runtime_sec is {seconds!r}.'
    )
  return seconds * (_SELF_TUNING_FACTOR if is_self_tuning else 1.0)


class Clock:
  """Feeds a plan with the durations of steps, and tells others its T.

  A step lasts from one call of `begin_step` to the next, loading of data
  included, and the last one before an evaluation up to `pause`. AlgoPerf bills
  as much, and one loading of data per evaluation.

  Args:
    plan: is changed.
    now: seconds; of a monotonic clock.
  """

  def __init__(
    self, plan: ClockPlan, now: Callable[[], float] = time.monotonic
  ) -> None:
    self.plan = plan
    self.now = now
    self._followers: list[Callable[[int], None]] = []
    self._mark: float | None = None
    self._is_regular = False

  def add_follower(self, follower: Callable[[int], None]) -> None:
    """Call `follower` with T whenever it is planned or restored."""
    self._followers.append(follower)

  def begin_step(self, billed: float = 0.0) -> bool:
    """Call when a step begins; True if T has been planned anew.

    A collective of all ranks in the steps in which a plan is due.

    Args:
      billed: seconds that the host has billed so far, if it tells. It may be
        more than the steps took: the first loading of data is in it.
    """
    now = self.now()
    was_paused = self._mark is None
    is_new = self._count(now, billed)
    self._mark = now
    # A step after a start or an evaluation fills caches anew.
    self._is_regular = not was_paused
    return is_new

  def pause(self) -> None:
    """Call when an evaluation is prepared: the step's time is over.

    A collective of all ranks, like `begin_step`. Save the state after it.
    """
    self._is_regular = False
    self._count(self.now())
    self._mark = None

  def _count(self, now: float, billed: float = 0.0) -> bool:
    if self._mark is None:
      return False
    self.plan.add(now - self._mark, self._is_regular)
    self.plan.elapsed = max(self.plan.elapsed, billed)
    if not self.plan.is_due:
      return False
    measured = self._agreed(self.plan.measurement())
    total = self.plan.revise(measured)
    logging.info(
      '%d) the schedule ends at step %d: %.4g s per step, %.0f of %.0f s spent',
      self.plan.step,
      total,
      measured.seconds_per_step,
      measured.elapsed,
      self.plan.seconds,
    )
    self._tell()
    return True

  def _agreed(self, measured: Measurement) -> Measurement:
    """Return the measurement that all ranks plan by: here the own one."""
    return measured

  def _tell(self) -> None:
    for follower in self._followers:
      follower(self.plan.total)

  def state_dict(self) -> dict[str, Any]:
    """The plan's state; the clock itself starts anew in every process."""
    return self.plan.state_dict()

  def load_state_dict(self, state_dict: dict[str, Any]) -> None:
    """Continue a saved plan. Load it before the state of its followers."""
    self.plan.load_state_dict(state_dict)
    self._mark = None
    self._tell()
