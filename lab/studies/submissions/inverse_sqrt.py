"""NadamW with a learning rate that needs no budget (arXiv 2602.03702).

After the warm-up of W steps the rate before step s is

  peak sqrt(a / (s - W + a))

where a, a number of steps, is a tenth of the run's T: the run is read at
several budgets, for all of which it is the same.
"""

import math
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from weightavg import learning_rate
from weightavg.pytorch import train_step
from weightavg.pytorch.build_nadamw import NADAMW
from weightavg.pytorch.train_step import (
  data_selection,
  prepare_for_eval,
  update_params,
)
from weightavg.schemes.raw import Raw

__all__ = [
  'data_selection',
  'get_batch_size',
  'init_optimizer_state',
  'prepare_for_eval',
  'update_params',
]

DELAY = 0.1

get_batch_size = NADAMW.get_batch_size


def factor(step: int, budget: int, warmup_factor: float) -> float:
  """Return the learning rate before `step` as a multiple of the peak.

  >>> [round(factor(s, 10, 0.2), 3) for s in (1, 2, 5, 10)]
  [0.5, 1.0, 0.5, 0.333]
  """
  warmup_steps = int(warmup_factor * budget)
  if step < warmup_steps:
    return learning_rate.factor(step, budget, warmup_factor, 'constant')
  delay = max(1.0, DELAY * budget)
  return math.sqrt(delay / (step - warmup_steps + delay))


def init_optimizer_state(
  workload, model_params, model_state, hyperparameters, rng
):
  """NadamW with this schedule in place of its own."""
  del model_state, rng
  state: dict[str, Any] = train_step.init_optimizer_state(
    workload, model_params, hyperparameters, NADAMW, Raw
  )
  schedule = state['run'].config.schedule
  budget = schedule.budget(workload.step_hint)
  state['scheduler'] = LambdaLR(
    state['optimizer'],
    lambda step: factor(step, budget, schedule.warmup_factor),
  )
  return state
