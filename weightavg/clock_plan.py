"""Length of a schedule that has to end within a time limit.

A run is given R seconds and at most L steps (the step hint times
`step_hint_factor`). After s steps that took E seconds, at d seconds per step,
its schedule is planned to end at step

  T = min(L, s + (UTILIZATION R - E) / d).

Until the first measurement T = L. After it T is planned anew whenever the
schedule passes a multiple of 1/PLANS, at most PLANS times in all, so that a
machine that slows down or speeds up later is met.

The learning rate is a function of the position p in [0, 1] along the schedule,
and a new T changes the speed at which the remaining positions are passed:

  p(s) = p_0 + (1 - p_0) (s - s_0) / (T - s_0)   since the plan at step s_0.

p is continuous in s, and so is every learning rate that is continuous in p. A
step raises p by at most 100 / L, which puts T after the limit where little time
is left.

d is the median, over the last five blocks of steps, of the mean duration of a
step. The mean spreads the cost of periodic work (Shampoo's roots), the median
drops outliers. A block has 0.5 % of T, or 100 steps where that is more, but at
most 2 % of T. The first block is dropped: it holds compilation, the tuning of
kernels and the filling of input queues. So the first plan is made after six
blocks, 3 % to 12 % of L.

Pure arithmetic on numbers: `weightavg.pytorch.clock` measures the durations.
"""

import dataclasses
import math
import statistics
from typing import Any

# The host evaluates every 1/25 of the time limit (every 1/37.5 under
# self-tuning), and never after it. A schedule that ends at 0.95 R is evaluated
# after its end even if the steps take 1 % (2.4 %) longer than measured. So it
# is on finewebedu_lm, with half as many evaluations, the last at 0.965 R.
UTILIZATION = 0.95
# Plans of one run at most.
PLANS = 16
_BLOCKS = 5
_LONGEST_BLOCK = 100
# Positions are passed at most this many times as fast as in L steps, however
# late it is: the learning rate comes down in several steps.
_STEEPEST = 100


@dataclasses.dataclass(frozen=True)
class Measurement:
  """Durations on which a plan rests; ranks agree on their maxima.

  Args:
    seconds_per_step: d, median over blocks.
    elapsed: E, seconds since the start of training, evaluations excluded.
  """

  seconds_per_step: float
  elapsed: float


class ClockPlan:
  """Plan T from measured durations, and the position of each step.

  Args:
    longest: L, in steps, at least 1.
    seconds: R, positive.

  >>> plan = ClockPlan(longest=1000, seconds=100.0)
  >>> plan.block, plan.total, plan.position(100)
  (20, 1000, 0.1)
  >>> for _ in range(6 * plan.block):
  ...   plan.add(0.2)
  >>> plan.is_due
  True
  >>> plan.revise(plan.measurement())  # 120 + (95 - 24) / 0.2
  475
  >>> plan.position(120)
  0.12
  """

  def __init__(self, longest: int, seconds: float) -> None:
    if not isinstance(longest, int) or longest < 1:
      raise ValueError(f'Invalid {longest=}. Must be an integer in [1, inf).')
    if not 0.0 < seconds < math.inf:
      raise ValueError(f'Invalid {seconds=}. Must be in (0, inf).')
    self.longest = longest
    self.seconds = seconds
    self.total = longest
    self.step = 0
    self.elapsed = 0.0
    # The next plan is due at this multiple of 1/PLANS.
    self._next = 0
    self._anchor = (0, 0.0)
    # Means of the last complete blocks, and the block under way.
    self._means: list[float] = []
    self._dropped = False
    self._sum = 0.0
    self._count = 0

  @property
  def block(self) -> int:
    """Steps of a block, at present."""
    return max(1, self.total // 200, min(_LONGEST_BLOCK, self.total // 50))

  def position(self, step: int) -> float:
    """Return the position of a step (0, 1, ...) along the schedule."""
    start, position = self._anchor
    if start >= self.total:
      return 1.0
    share = (step - start) / (self.total - start)
    return min(1.0, position + (1.0 - position) * share)

  def step_of(self, position: float) -> int:
    """Return the step that reaches a position along the schedule.

    Args:
      position: in [0, 1]. For one that was passed before the last plan it is 0:
        a plan moves no steps that have been made.
    """
    start, reached = self._anchor
    if position <= reached:
      return 0
    share = (position - reached) / (1.0 - reached)
    return start + round(share * (self.total - start))

  def add(self, seconds: float, is_regular: bool = True) -> None:
    """Count one step.

    Args:
      seconds: duration of the step, or of its part that is billed.
      is_regular: whether it may enter the measurement; steps that are followed
        by an evaluation, and the first ones of a process, may not.
    """
    self.step += 1
    self.elapsed += seconds
    if not is_regular:
      return
    self._sum += seconds
    self._count += 1
    if self._count >= self.block:
      if self._dropped:
        self._means = [*self._means, self._sum / self._count][-_BLOCKS:]
      self._dropped = True
      self._sum, self._count = 0.0, 0

  @property
  def is_due(self) -> bool:
    """True if `revise` has to be called before the next step."""
    if len(self._means) < _BLOCKS:
      return False
    return self.position(self.step) >= self._next / PLANS and self._next < PLANS

  def measurement(self) -> Measurement:
    """Return the durations so far.

    Raises:
      RuntimeError: before the first whole block.
    """
    if not self._means:
      raise RuntimeError('No block of steps has been measured yet.')
    return Measurement(statistics.median(self._means), self.elapsed)

  def revise(self, measured: Measurement) -> int:
    """Plan T anew and return it; the measurement is the same on all ranks."""
    rest = self.seconds * UTILIZATION - measured.elapsed
    # A clock may be too coarse for the shortest steps.
    duration = max(
      measured.seconds_per_step, self.seconds / (100 * self.longest)
    )
    fitting = math.floor(rest / duration)
    reached = self.position(self.step)
    gentlest = max(1, math.ceil((1.0 - reached) * self.longest / _STEEPEST))
    planned = self.step + max(fitting, gentlest)
    self._anchor = (self.step, reached)
    self.total = max(self.step, min(self.longest, planned))
    self._next = math.floor(PLANS * self._anchor[1]) + 1
    return self.total

  def state_dict(self) -> dict[str, Any]:
    """Return the plan and the measurement so far, in numbers and a list."""
    return {
      'longest': self.longest,
      'seconds': self.seconds,
      'total': self.total,
      'step': self.step,
      'elapsed': self.elapsed,
      'next_plan': self._next,
      'anchor_step': self._anchor[0],
      'anchor_position': self._anchor[1],
      'means': list(self._means),
      'dropped': self._dropped,
      'block_sum': self._sum,
      'block_count': self._count,
    }

  def load_state_dict(self, state: dict[str, Any]) -> None:
    """Continue a saved plan.

    Raises:
      ValueError: for a plan with another time limit or number of steps.
    """
    for name in ('longest', 'seconds'):
      if state[name] != getattr(self, name):
        raise ValueError(
          f'Invalid checkpoint: planned with {name}={state[name]!r}, this run '
          f'has {name}={getattr(self, name)!r}.'
        )
    self.total = int(state['total'])
    self.step = int(state['step'])
    self.elapsed = float(state['elapsed'])
    self._next = int(state['next_plan'])
    self._anchor = (int(state['anchor_step']), float(state['anchor_position']))
    self._means = [float(mean) for mean in state['means']]
    self._dropped = bool(state['dropped'])
    self._sum = float(state['block_sum'])
    self._count = int(state['block_count'])
