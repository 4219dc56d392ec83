"""NadamW trains in JAX at an exponential average, which evaluation sees."""

from weightavg.jax import train_step
from weightavg.jax.build_nadamw import NADAMW_PRIMAL
from weightavg.jax.train_step import (
  data_selection,
  prepare_for_eval,
  update_params,
)
from weightavg.schemes.ema import Ema

__all__ = [
  'data_selection',
  'get_batch_size',
  'init_optimizer_state',
  'prepare_for_eval',
  'update_params',
]

get_batch_size = NADAMW_PRIMAL.get_batch_size


def init_optimizer_state(
  workload, model_params, model_state, hyperparameters, rng
):
  """NadamW, its schedule and the average it trains at."""
  del rng
  return train_step.init_optimizer_state(
    workload, model_params, model_state, hyperparameters, NADAMW_PRIMAL, Ema
  )
