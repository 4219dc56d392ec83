"""Shampoo trains; evaluation sees LAWA, the mean of the last samples."""

from weightavg.pytorch import train_step
from weightavg.pytorch.build_shampoo import SHAMPOO
from weightavg.pytorch.train_step import (
  data_selection,
  prepare_for_eval,
  update_params,
)
from weightavg.schemes.lawa import Lawa

__all__ = [
  'data_selection',
  'get_batch_size',
  'init_optimizer_state',
  'prepare_for_eval',
  'update_params',
]

get_batch_size = SHAMPOO.get_batch_size


def init_optimizer_state(
  workload, model_params, model_state, hyperparameters, rng
):
  """Distributed Shampoo, its schedule and its averager."""
  del model_state, rng
  return train_step.init_optimizer_state(
    workload, model_params, hyperparameters, SHAMPOO, Lawa
  )
