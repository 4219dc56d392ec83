"""NadamW from its configuration."""

import dataclasses

import torch
from torch import nn

from weightavg.optimizers import Optimizer, primal
from weightavg.optimizers.nadamw import SELF_TUNING_POINT, NadamWConfig
from weightavg.pytorch.nadamw import NadamW


def build_nadamw(
  model: nn.Module, config: NadamWConfig
) -> torch.optim.Optimizer:
  """NadamW over all parameters of a model."""
  return NadamW(
    model.parameters(),
    lr=config.learning_rate,
    betas=(1.0 - config.one_minus_beta1, config.beta2),
    eps=config.epsilon,
    weight_decay=config.weight_decay,
    fused=config.fused,
  )


NADAMW = Optimizer(
  name='nadamw',
  config=NadamWConfig,
  build=build_nadamw,
  self_tuning_point=SELF_TUNING_POINT,
)

# In submissions that train at an average.
NADAMW_PRIMAL = dataclasses.replace(
  NADAMW,
  self_tuning_point=primal.NADAMW_POINT,
  defaults=primal.PRIMAL_DEFAULTS,
)
NADAMW_SCHEDULE_FREE = dataclasses.replace(
  NADAMW,
  self_tuning_point=primal.SCHEDULE_FREE_POINT,
  defaults=primal.SCHEDULE_FREE_DEFAULTS,
)
