"""NadamW trains in JAX; evaluation sees the best of several averages."""

from weightavg.jax import choosing_step
from weightavg.jax.build_nadamw import NADAMW
from weightavg.jax.choosing_step import (
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

get_batch_size = NADAMW.get_batch_size


def init_optimizer_state(
  workload, model_params, model_state, hyperparameters, rng
):
  """NadamW, its schedule, its averages and the probe."""
  del rng
  return choosing_step.init_optimizer_state(
    workload, model_params, model_state, hyperparameters, NADAMW
  )
