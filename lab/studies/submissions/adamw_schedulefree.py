"""PyPI's `schedulefree.AdamWScheduleFree`, as its README has it used.

Schedule-Free AdamW (Defazio et al. 2024, arXiv 2405.15682) by its authors. The
package has its own warm-up, weights of the average and weight decay, which acts
from y towards zero. Trained is y; evaluated is x, which the optimizer's `eval`
puts in the place of y. In a model with BatchNorm the running statistics are
recomputed at x on the last 50 training batches before each evaluation, which is
billed.
"""

import collections
import dataclasses
from typing import Any

import schedulefree
import torch
from torch import nn

from lab.offline import batch_norm
from lab.studies.submissions.points import as_dict
from weightavg.optimizers.nadamw import NadamWConfig
from weightavg.pytorch import models, train_step
from weightavg.pytorch.build_nadamw import NADAMW
from weightavg.pytorch.train_step import data_selection
from weightavg.schemes.raw import Raw

__all__ = [
  'data_selection',
  'get_batch_size',
  'init_optimizer_state',
  'prepare_for_eval',
  'update_params',
]

BATCHES = 50

get_batch_size = NADAMW.get_batch_size


class Recent:
  """The last training batches; none of a model without running statistics."""

  def __init__(self, model: nn.Module) -> None:
    kept = BATCHES if any(models.running_statistics(model)) else 0
    self.batches: collections.deque[Any] = collections.deque(maxlen=kept)

  def state_dict(self) -> dict[str, Any]:
    """The batches, the oldest first."""
    return {'batches': list(self.batches)}

  def load_state_dict(self, state_dict: dict[str, Any]) -> None:
    """Restore what `state_dict` has returned."""
    self.batches.extend(state_dict['batches'])


def init_optimizer_state(
  workload, model_params, model_state, hyperparameters, rng
):
  """The optimizer, and the batches for running statistics."""
  del model_state, rng
  point = as_dict(hyperparameters)
  warmup_steps = point.pop('warmup_steps', 0)
  power = point.pop('schedule_free_power', 0.0)

  def build(model: nn.Module, config: NadamWConfig) -> torch.optim.Optimizer:
    return schedulefree.AdamWScheduleFree(
      model.parameters(),
      lr=config.learning_rate,
      betas=(1.0 - config.one_minus_beta1, config.beta2),
      eps=config.epsilon,
      weight_decay=config.weight_decay,
      warmup_steps=warmup_steps,
      r=power,
    )

  optimizer = dataclasses.replace(
    NADAMW,
    name='adamw_schedulefree',
    build=build,
    defaults={'schedule': 'constant'},
  )
  state = train_step.init_optimizer_state(
    workload, model_params, point, optimizer, Raw
  )
  return state | {'recent': Recent(models.unwrap(model_params))}


def update_params(*args, **kwargs):
  """One step at y."""
  state = kwargs['optimizer_state']
  state['optimizer'].train()
  state['recent'].batches.append(kwargs['batch'])
  return train_step.update_params(*args, **kwargs)


def prepare_for_eval(*args, **kwargs):
  """Show x, with running statistics of x."""
  state, model, model_state = train_step.prepare_for_eval(*args, **kwargs)
  state['optimizer'].eval()
  batches = state['recent'].batches
  if batches:
    model.train()
    batch_norm.recompute(
      kwargs['workload'],
      model,
      model_state,
      iter(batches),
      len(batches),
      kwargs['rng'],
    )
  return state, model, model_state
