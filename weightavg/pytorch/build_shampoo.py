"""Distributed Shampoo from its configuration."""

import dataclasses

import torch
from torch import nn

from weightavg.optimizers import Optimizer, primal
from weightavg.optimizers.shampoo import (
  BATCH_SIZES,
  SELF_TUNING_POINT,
  ShampooConfig,
)
from weightavg.pytorch import models
from weightavg.pytorch.shampoo import DistributedShampoo


def build_shampoo(
  model: nn.Module, config: ShampooConfig
) -> torch.optim.Optimizer:
  """Distributed Shampoo over all parameters of a model."""
  return DistributedShampoo(
    models.named_parameters(model),
    lr=config.learning_rate,
    betas=(1.0 - config.one_minus_beta1, 1.0 - config.one_minus_beta2),
    epsilon=config.epsilon,
    momentum=1.0 - config.one_minus_momentum,
    weight_decay=config.weight_decay,
    max_preconditioner_dim=config.max_preconditioner_dim,
    precondition_frequency=config.precondition_frequency,
    start_preconditioning_step=config.start_preconditioning_step,
    inv_root_override=config.inv_root_override,
    exponent_multiplier=config.exponent_multiplier,
    grafting=config.grafting,
    grafting_epsilon=config.grafting_epsilon,
    use_nadam=config.use_nadam,
    use_nesterov=True,
    communication_dtype=getattr(torch, config.communication_dtype),
    num_trainers_per_group=config.num_trainers_per_group,
    spread_roots=config.spread_roots,
    skip_nonfinite_gradients=config.skip_nonfinite_gradients,
  )


SHAMPOO = Optimizer(
  name='shampoo',
  config=ShampooConfig,
  build=build_shampoo,
  self_tuning_point=SELF_TUNING_POINT,
  batch_sizes=BATCH_SIZES,
)

# In submissions that train at an average.
SHAMPOO_PRIMAL = dataclasses.replace(
  SHAMPOO,
  self_tuning_point=primal.SHAMPOO_POINT,
  defaults=primal.PRIMAL_DEFAULTS,
)
SHAMPOO_SCHEDULE_FREE = dataclasses.replace(
  SHAMPOO,
  self_tuning_point=primal.SHAMPOO_SCHEDULE_FREE_POINT,
  defaults=primal.SCHEDULE_FREE_DEFAULTS,
)
