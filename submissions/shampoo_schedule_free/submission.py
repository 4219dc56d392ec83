"""Shampoo trains at an average without a schedule or a budget."""

from weightavg.pytorch import train_step
from weightavg.pytorch.build_shampoo import SHAMPOO_SCHEDULE_FREE
from weightavg.pytorch.train_step import (
  data_selection,
  prepare_for_eval,
  update_params,
)
from weightavg.schemes.schedule_free import ScheduleFree

__all__ = [
  'data_selection',
  'get_batch_size',
  'init_optimizer_state',
  'prepare_for_eval',
  'update_params',
]

get_batch_size = SHAMPOO_SCHEDULE_FREE.get_batch_size


def init_optimizer_state(
  workload, model_params, model_state, hyperparameters, rng
):
  """Distributed Shampoo, its warm-up and the average it trains at."""
  del model_state, rng
  return train_step.init_optimizer_state(
    workload, model_params, hyperparameters, SHAMPOO_SCHEDULE_FREE, ScheduleFree
  )
