"""Learning rates by step, as multiples of the peak.

With S the length of the schedule in steps and W = int(warmup_factor S) the
length of its warm-up, unless that is given in steps, the factor before step s
(0, 1, ...) is

  s < W:  1e-10 + (1 - 1e-10) s / W
  s >= W: with x = min(1, (s - W) / max(S - W, 1)),
    cosine          (1 + cos(pi x)) / 2
    cosine_to_half  (3 + cos(pi x)) / 4
    constant        1
"""

import math

# As in AlgoPerf's baselines; at zero the first step would change nothing.
WARMUP_START = 1e-10


def factor(
  step: int,
  steps: int,
  warmup_factor: float,
  schedule: str = 'cosine',
  warmup_steps: int | None = None,
) -> float:
  """Return the learning rate before `step` as a multiple of the peak.

  `warmup_steps` is W; None for int(warmup_factor S).

  >>> [round(factor(s, 8, 0.25), 3) for s in (0, 1, 2, 5, 8, 9)]
  [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
  """
  if warmup_steps is None:
    warmup_steps = int(warmup_factor * steps)
  if step < warmup_steps:
    return WARMUP_START + (1.0 - WARMUP_START) * step / warmup_steps
  progress = min(1.0, (step - warmup_steps) / max(steps - warmup_steps, 1))
  return _after_warmup(progress, schedule)


def factor_at(
  position: float, warmup_factor: float, schedule: str = 'cosine'
) -> float:
  """Return the learning rate at a position in [0, 1] of the schedule.

  A multiple of the peak, on the same curve as `factor`, with
  x = (position - w) / (1 - w) after a warm-up of w = warmup_factor.

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
