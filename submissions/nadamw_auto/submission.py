"""NadamW trains; evaluation sees the best of several averages."""

from weightavg.pytorch import choosing_step
from weightavg.pytorch.build_nadamw import build_nadamw
from weightavg.pytorch.choosing_step import (
  data_selection,
  prepare_for_eval,
  update_params,
)
from weightavg.workloads import get_batch_size

__all__ = [
  'data_selection',
  'get_batch_size',
  'init_optimizer_state',
  'prepare_for_eval',
  'update_params',
]


def init_optimizer_state(
  workload, model_params, model_state, hyperparameters, rng
):
  """NadamW, its schedule, its averagers and the probe."""
  del model_state, rng
  return choosing_step.init_optimizer_state(
    workload,
    model_params,
    hyperparameters,
    optimizer='nadamw',
    build_optimizer=build_nadamw,
  )
