"""A clock on which all ranks agree."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from weightavg import clock
from weightavg.clock_plan import ClockPlan, Measurement
from weightavg.pytorch.distributed import world_size


class Clock(clock.Clock):
  """A `weightavg.clock.Clock` of all ranks.

  They plan after the same steps, from the largest durations that any of them
  measured: one reduction of two numbers for each plan.

  Args:
    plan: is changed.
    device: on which the ranks' reduction works.
    now: seconds; of a monotonic clock.
  """

  def __init__(
    self,
    plan: ClockPlan,
    device: torch.device,
    now: Callable[[], float] = time.monotonic,
  ) -> None:
    super().__init__(plan, now)
    self._device = device

  def _agreed(self, measured: Measurement) -> Measurement:
    if world_size() == 1:
      return measured
    values = torch.tensor(
      [measured.seconds_per_step, measured.elapsed],
      dtype=torch.float64,
      device=self._device,
    )
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return Measurement(*values.tolist())
