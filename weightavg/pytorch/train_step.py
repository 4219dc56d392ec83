"""The functions that AlgoPerf calls, shared by all submissions.

Trained are the model's raw weights; between `prepare_for_eval` and the next
`update_params` the model holds their average, also in the checkpoint that the
benchmark writes then: the raw weights come back from the averager's state.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from absl import logging
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from weightavg import spec
from weightavg.clock import time_limit
from weightavg.clock_plan import ClockPlan
from weightavg.config_fields import values_by_key
from weightavg.optimizers import Optimizer
from weightavg.pytorch import models
from weightavg.pytorch.averager import Averager
from weightavg.pytorch.clock import Clock
from weightavg.pytorch.distributed import world_size
from weightavg.pytorch.profiling import section
from weightavg.pytorch.schedules import (
  build_planned_scheduler,
  build_scheduler,
)
from weightavg.schemes import Scheme
from weightavg.submission_config import SubmissionConfig
from weightavg.workloads import batch_size_of

# The benchmark's baselines log every step up to the first of these, then at
# multiples of the second; each row costs two synchronisations.
_LOG_FIRST_STEPS = 100
_LOG_EVERY_STEPS = 500
# Fields of a point that do not change what is trained: the kernels, how ranks
# share the work, and what happens to a bad gradient.
_MAY_CHANGE = (
  'fused',
  'num_trainers_per_group',
  'communication_dtype',
  'skip_nonfinite_gradients',
)


class Run:
  """A run's configuration and model, beside its tensors.

  After a restore AlgoPerf's runner hands on the module from inside
  DistributedDataParallel; trained through it, ranks would no longer average
  their gradients. The wrapper seen at the start holds that very module, so it
  is kept here, outside the saved state, and used throughout.
  """

  def __init__(
    self, model: nn.Module, config: SubmissionConfig, name: str, budget: int
  ) -> None:
    self.model = model
    self.config = config
    self._identity = {'optimizer': name, 'budget': budget}
    # A resumed optimizer takes these from its checkpoint, whatever the point
    # says.
    values = values_by_key(
      config.optimizer, config.schedule, config.regularization
    )
    self._identity |= {
      key: value
      for key, value in values.items()
      if key not in {*self._identity, *_MAY_CHANGE}
    }

  def state_dict(self) -> dict[str, Any]:
    """The optimizer's name, the budget in steps, and the point's values."""
    return dict(self._identity)

  def load_state_dict(self, state_dict: dict[str, Any]) -> None:
    """Refuse the state of another submission, budget or point."""
    for key, value in self._identity.items():
      # States of earlier versions have numbers only.
      is_needed = key in ('optimizer', 'budget') or isinstance(value, float)
      if state_dict.get(key, None if is_needed else value) != value:
        raise ValueError(
          f'Invalid checkpoint: saved with {key}={state_dict.get(key)!r}, this '
          f'submission has {key}={value!r}.'
        )


def init_optimizer_state(
  workload: spec.Workload,
  model_params: nn.Module,
  hyperparameters: Any,
  optimizer: Optimizer,
  scheme: type[Scheme],
) -> dict[str, Any]:
  """Build everything that trains; every key that will ever exist exists now.

  Args:
    workload: gives the step hint and, for epochs, the number of examples.
    model_params: the model, wrapped or not.
    hyperparameters: a point of the search space; None under self-tuning.
    optimizer: handed over so that a submission carries no other than its own.
    scheme: class of the average that evaluation sees.

  Raises:
    ValueError: for a point that is not allowed.
  """
  config = SubmissionConfig.from_point(hyperparameters, optimizer, scheme)
  budget = config.schedule.budget(workload.step_hint)
  clock = _build_clock(
    workload, model_params, config, is_self_tuning=hyperparameters is None
  )
  trainer = optimizer.build(model_params, config.optimizer)
  curve = (
    config.schedule.warmup_factor,
    config.schedule.schedule,
    config.schedule.schedule_factor,
  )
  averaging = config.averaging
  epoch = _steps_per_epoch(workload, config, optimizer.get_batch_size)
  averager = Averager.from_config(
    model_params, averaging, budget, epoch, collective=True
  )
  timing: dict[str, Any] = {}
  if clock is None:
    scheduler: LRScheduler = build_scheduler(
      trainer, budget, *curve, config.schedule.warmup_steps
    )
  else:
    scheduler = build_planned_scheduler(trainer, clock.plan, *curve)
    plan = clock.plan
    clock.add_follower(
      lambda total: averager.resample(
        averaging.sampling(
          total, epoch, plan.step_of(averaging.averaging_start)
        ),
        averaging.scheme_in(total, epoch),
      )
    )
    # Restored in this order: the averager's state is that of the planned T.
    timing['clock'] = clock
  return {
    'optimizer': trainer,
    'scheduler': scheduler,
    **timing,
    'averager': averager,
    'run': Run(model_params, config, optimizer.name, budget),
  }


def _build_clock(
  workload: spec.Workload,
  model: nn.Module,
  config: SubmissionConfig,
  is_self_tuning: bool,
) -> Clock | None:
  if config.schedule.planned_by != 'clock':
    return None
  longest = config.schedule.budget(workload.step_hint)
  plan = ClockPlan(longest, time_limit(workload, is_self_tuning))
  return Clock(plan, next(model.parameters()).device)


def _steps_per_epoch(
  workload: spec.Workload,
  config: SubmissionConfig,
  size_of: Callable[[str], int],
) -> int | None:
  """One epoch in steps, for a scheme that samples once per epoch."""
  if config.averaging.scheme.cadence_key is None:
    return None
  batch_size = batch_size_of(workload, size_of)
  return max(1, workload.num_train_examples // batch_size)


def update_params(
  workload: spec.Workload,
  current_param_container: nn.Module,
  current_params_types: Any,
  model_state: Any,
  hyperparameters: Any,
  batch: dict[str, Any],
  loss_type: spec.LossType,
  optimizer_state: dict[str, Any],
  eval_results: list[tuple[int, float]],
  global_step: int,
  rng: Any,
  train_state: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], nn.Module, Any]:
  """One training step on the raw weights, seen by the averager afterwards."""
  del current_param_container, current_params_types, hyperparameters
  del loss_type, eval_results
  if 'clock' in optimizer_state:
    billed = (train_state or {}).get('accumulated_submission_time', 0.0)
    _plan(workload, optimizer_state['clock'], global_step, billed)
  run, averager = optimizer_state['run'], optimizer_state['averager']
  optimizer, regularization = (
    optimizer_state['optimizer'],
    run.config.regularization,
  )
  with section('Swap'):
    averager.swap_out()
  with section('Forward and backward'):
    run.model.train()
    optimizer.zero_grad(set_to_none=True)
    logits, new_model_state = workload.model_fn(
      params=run.model,
      augmented_and_preprocessed_input_batch=batch,
      model_state=model_state,
      mode=spec.ForwardPassMode.TRAIN,
      rng=rng,
      update_batch_norm=True,
      **regularization.model_options,
    )
    losses = workload.loss_fn(
      label_batch=batch['targets'],
      logits_batch=logits,
      mask_batch=batch.get('weights'),
      label_smoothing=regularization.label_smoothing,
    )
    share, total = _share_of_mean(losses)
    share.backward()
  with section('Optimizer'):
    if regularization.grad_clip is not None:
      nn.utils.clip_grad_norm_(
        run.model.parameters(), max_norm=regularization.grad_clip
      )
    averager.before_step(optimizer)
    optimizer.step()
    optimizer_state['scheduler'].step()
  with section('Averaging'):
    averager.update()
  if averager.refresh_due:
    with section('Running statistics'), averager.refreshing():
      # Without the wrappers: another shape of pass would be compiled, billed.
      workload.model_fn(
        params=models.unwrap(run.model),
        augmented_and_preprocessed_input_batch=batch,
        model_state=model_state,
        mode=spec.ForwardPassMode.TRAIN,
        rng=rng,
        update_batch_norm=True,
        **regularization.model_options,
      )
  if global_step <= _LOG_FIRST_STEPS or global_step % _LOG_EVERY_STEPS == 0:
    _log(workload, run.model, losses['summed'].detach() / total, global_step)
  return optimizer_state, run.model, new_model_state


def _plan(
  workload: spec.Workload, clock: Clock, global_step: int, billed: float
) -> None:
  is_new = clock.begin_step(billed)
  if is_new and workload.metrics_logger is not None:
    workload.metrics_logger.append_scalar_metrics(
      {'planned_steps': clock.plan.total}, global_step
    )


def _share_of_mean(losses: dict[str, Any]) -> tuple[Tensor, Tensor]:
  """This rank's loss, scaled so that DDP's mean is the global mean's gradient.

  DDP averages gradients over ranks, the loss is a mean over valid examples,
  of which ranks may have different numbers, or none. So a rank differentiates
  world * summed / (valid examples on all ranks).
  """
  summed = losses['summed']
  # At least float32: bfloat16 cannot count to 257.
  wide = torch.promote_types(summed.dtype, torch.float32)
  total = torch.as_tensor(losses['n_valid_examples'], device=summed.device)
  total = total.to(wide, copy=True)
  if world_size() > 1:
    dist.all_reduce(total)
  total.clamp_(min=1.0)  # a batch without a valid example gives zero gradients
  return summed * world_size() / total, total


def _log(
  workload: spec.Workload, model: nn.Module, loss: Tensor, global_step: int
) -> None:
  """Loss and gradient norm, as the benchmark's baselines log them."""
  if world_size() > 1:
    dist.all_reduce(loss)
  gradients = [p.grad for p in model.parameters() if p.grad is not None]
  if not gradients:
    return
  norm = torch.stack(torch._foreach_norm(gradients)).norm()
  metrics = {'loss': loss.item(), 'grad_norm': norm.item()}
  if workload.metrics_logger is not None:
    workload.metrics_logger.append_scalar_metrics(metrics, global_step)
  logging.info(
    '%d) loss = %0.3f, grad_norm = %0.3f',
    global_step,
    metrics['loss'],
    metrics['grad_norm'],
  )


def prepare_for_eval(
  workload: spec.Workload,
  current_param_container: nn.Module,
  current_params_types: Any,
  model_state: Any,
  hyperparameters: Any,
  loss_type: spec.LossType,
  optimizer_state: dict[str, Any],
  eval_results: list[tuple[int, float]],
  global_step: int,
  rng: Any,
) -> tuple[dict[str, Any], nn.Module, Any]:
  """Show the average to the evaluation and the checkpoint that follow."""
  del workload, current_param_container, current_params_types, hyperparameters
  del loss_type, eval_results, global_step, rng
  optimizer = optimizer_state['optimizer']
  with section('Swap'):
    # AlgoPerf's speech workloads load the mean of the model over the ranks.
    optimizer_state['averager'].swap_in(allow_load=True)
  if hasattr(optimizer, 'gather_state_for_checkpoint'):
    with section('Gather optimizer state'):
      optimizer.gather_state_for_checkpoint()
  if 'clock' in optimizer_state:
    optimizer_state['clock'].pause()
  return optimizer_state, optimizer_state['run'].model, model_state


def data_selection(
  workload: spec.Workload,
  input_queue: Iterator[dict[str, Any]],
  optimizer_state: dict[str, Any],
  current_param_container: nn.Module,
  model_state: Any,
  hyperparameters: Any,
  global_step: int,
  rng: Any,
) -> dict[str, Any]:
  """The next batch of the queue."""
  del workload, optimizer_state, current_param_container, model_state
  del hyperparameters, global_step, rng
  return next(input_queue)
