"""Learning-rate schedules as multiples of the peak, by step.

For S schedule steps of which W = int(warmup_factor S) warm up, the factor
before step s (0, 1, ...) is

  s < W:  1e-10 + (1 - 1e-10) s / W
  s >= W: with x = min(1, (s - W) / max(S - W, 1)),
    cosine          (1 + cos(pi x)) / 2
    cosine_to_half  (3 + cos(pi x)) / 4
    constant        1

AlgoPerf's baselines compose the same curve from torch's LinearLR and
CosineAnnealingLR; theirs rises again after S steps, ours stays at its end.
"""

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from weightavg.clock_plan import ClockPlan

# The baselines' start of the warm-up: not zero, so that no step is lost.
WARMUP_START = 1e-10


def factor(
  step: int, steps: int, warmup_factor: float, schedule: str = 'cosine'
) -> float:
  """Learning rate before `step`, as a multiple of the peak.

  >>> [round(factor(s, 8, 0.25), 3) for s in (0, 1, 2, 5, 8, 9)]
  [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
  """
  warmup_steps = int(warmup_factor * steps)
  if step < warmup_steps:
    return WARMUP_START + (1.0 - WARMUP_START) * step / warmup_steps
  progress = min(1.0, (step - warmup_steps) / max(steps - warmup_steps, 1))
  return _after_warmup(progress, schedule)


def factor_at(
  position: float, warmup_factor: float, schedule: str = 'cosine'
) -> float:
  """Learning rate at a position in [0, 1] of the schedule, as a multiple.

  The same curve as `factor`, with x = (position - w) / (1 - w) after a warm-up
  of w = warmup_factor. Continuous, but for a step up by 1e-10 at the start.

  >>> [round(factor_at(p / 8, 0.25), 3) for p in (0, 1, 2, 5, 8, 9)]
  [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
  """
  if position < warmup_factor:
    return WARMUP_START + (1.0 - WARMUP_START) * position / warmup_factor
  progress = min(1.0, (position - warmup_factor) / (1.0 - warmup_factor))
  return _after_warmup(progress, schedule)


def _after_warmup(progress: float, schedule: str) -> float:
  cosine = math.cos(math.pi * progress)
  factors = {
    'cosine': 0.5 * (1.0 + cosine),
    'cosine_to_half': 0.25 * (3.0 + cosine),
    'constant': 1.0,
  }
  if schedule not in factors:
    raise ValueError(
      f'Invalid schedule={schedule!r}. Must be one of {", ".join(factors)}.'
    )
  return factors[schedule]


def build_scheduler(
  optimizer: torch.optim.Optimizer,
  budget: int,
  warmup_factor: float = 0.0,
  schedule: str = 'cosine',
  schedule_factor: float = 1.0,
) -> LambdaLR:
  """Schedule for `optimizer` over schedule_factor * budget steps."""
  steps = max(1, round(schedule_factor * budget))
  return LambdaLR(
    optimizer, lambda step: factor(step, steps, warmup_factor, schedule)
  )


def build_planned_scheduler(
  optimizer: torch.optim.Optimizer,
  plan: ClockPlan,
  warmup_factor: float = 0.0,
  schedule: str = 'cosine',
  schedule_factor: float = 1.0,
) -> LambdaLR:
  """Schedule for `optimizer` along the positions of a plan that may change."""

  def at(step: int) -> float:
    position = plan.position(step) / schedule_factor
    return factor_at(position, warmup_factor, schedule)

  return LambdaLR(optimizer, at)
