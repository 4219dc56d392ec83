"""NadamW trains in JAX at an average without a schedule or a budget."""

from weightavg.jax import train_step
from weightavg.jax.build_nadamw import NADAMW_SCHEDULE_FREE
from weightavg.jax.train_step import (
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

get_batch_size = NADAMW_SCHEDULE_FREE.get_batch_size


def init_optimizer_state(
  workload, model_params, model_state, hyperparameters, rng
):
  """NadamW, its warm-up and the average it trains at."""
  del rng
  return train_step.init_optimizer_state(
    workload,
    model_params,
    model_state,
    hyperparameters,
    NADAMW_SCHEDULE_FREE,
    ScheduleFree,
  )
