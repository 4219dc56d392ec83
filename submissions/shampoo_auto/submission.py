"""Shampoo trains; evaluation sees the best of several averages."""

from weightavg.pytorch import choosing_step
from weightavg.pytorch.build_shampoo import SHAMPOO
from weightavg.pytorch.choosing_step import (
  data_selection,
  prepare_for_checkpoint,
  prepare_for_eval,
  update_params,
)

__all__ = [
  'data_selection',
  'get_batch_size',
  'init_optimizer_state',
  'prepare_for_checkpoint',
  'prepare_for_eval',
  'update_params',
]

get_batch_size = SHAMPOO.get_batch_size


def init_optimizer_state(
  workload, model_params, model_state, hyperparameters, rng
):
  """Distributed Shampoo, its schedule, its averages and the probe."""
  del model_state, rng
  return choosing_step.init_optimizer_state(
    workload, model_params, hyperparameters, SHAMPOO
  )
