"""NadamW trains in JAX; evaluation sees an exponential average."""

from weightavg.jax import train_step
from weightavg.jax.build_nadamw import NADAMW
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

get_batch_size = NADAMW.get_batch_size


def init_optimizer_state(
  workload, model_params, model_state, hyperparameters, rng
):
  """NadamW, its schedule and its averages."""
  del rng
  return train_step.init_optimizer_state(
    workload, model_params, model_state, hyperparameters, NADAMW, Ema
  )
