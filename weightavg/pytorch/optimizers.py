"""Optimizers from their configurations."""

import functools
from typing import Any

import torch
from torch import nn

from weightavg.optimizer_config import NadamWConfig, ShampooConfig
from weightavg.pytorch import models
from weightavg.pytorch.nadamw import NadamW
from weightavg.pytorch.shampoo import DistributedShampoo


@functools.singledispatch
def _build(config: Any, model: nn.Module) -> torch.optim.Optimizer:
  raise TypeError(f'no optimizer for {type(config).__name__}')


def build_optimizer(model: nn.Module, config: Any) -> torch.optim.Optimizer:
  """The optimizer that `config` describes, over all parameters of a model."""
  return _build(config, model)


@_build.register
def _nadamw(config: NadamWConfig, model: nn.Module) -> torch.optim.Optimizer:
  return NadamW(
    model.parameters(),
    lr=config.learning_rate,
    betas=(1.0 - config.one_minus_beta1, config.beta2),
    eps=config.epsilon,
    weight_decay=config.weight_decay,
    fused=config.fused,
  )


@_build.register
def _shampoo(config: ShampooConfig, model: nn.Module) -> torch.optim.Optimizer:
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
