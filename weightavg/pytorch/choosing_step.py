"""The functions that AlgoPerf calls, for submissions that choose an average.

Several averages follow the run; each evaluation sees the one whose loss is
lowest on a probe, examples held out of training. The rules do not let
`data_selection` change the optimizer's state: it hands a new probe over inside
the batch that it returns, and `update_params` puts it aside.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from absl import logging
from torch import Tensor, nn

from weightavg import spec
from weightavg.optimizers import Optimizer
from weightavg.pytorch import models, selection, train_step
from weightavg.pytorch.averager import Averager
from weightavg.pytorch.choice import RAW
from weightavg.pytorch.probes import Batch, Probe, mapped, num_examples
from weightavg.pytorch.profiling import section
from weightavg.schemes import Auto

# Key of the probe in a batch.
PROBE = 'weightavg_probe'


def init_optimizer_state(
  workload: spec.Workload,
  model_params: nn.Module,
  hyperparameters: Any,
  optimizer: Optimizer,
) -> dict[str, Any]:
  """Build the state of `train_step`, the probe and the rule of the choice.

  Arguments and errors are those of `train_step.init_optimizer_state`.
  """
  state = train_step.init_optimizer_state(
    workload,
    model_params,
    hyperparameters,
    optimizer,
    Auto,
  )
  config = state['run'].config
  auto = config.averaging.scheme
  every = auto.probe_every_steps(config.schedule.budget(workload.step_hint))
  probe = Probe(
    auto.probe_examples, every, config.averaging.averaging_checkpoints
  )
  if 'clock' in state:
    state['clock'].add_follower(
      lambda total: probe.renew_every(auto.probe_every_steps(total))
    )
  state['probe'] = probe
  state['selector'] = selection.Selector(auto.probe_memory)
  return state


def data_selection(
  workload: spec.Workload,
  input_queue: Iterator[Batch],
  optimizer_state: dict[str, Any],
  current_param_container: nn.Module,
  model_state: Any,
  hyperparameters: Any,
  global_step: int,
  rng: Any,
) -> Batch:
  """The next batch of the queue, with one more inside when a probe is due."""
  del workload, current_param_container, model_state, hyperparameters, rng
  batch = next(input_queue)
  if optimizer_state['probe'].is_due(global_step):
    batch = {**batch, PROBE: next(input_queue)}
  return batch


def update_params(
  workload: spec.Workload,
  current_param_container: nn.Module,
  current_params_types: Any,
  model_state: Any,
  hyperparameters: Any,
  batch: Batch,
  loss_type: spec.LossType,
  optimizer_state: dict[str, Any],
  eval_results: list[tuple[int, float]],
  global_step: int,
  rng: Any,
  train_state: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], nn.Module, Any]:
  """Put a probe aside if the batch has one, then train on the rest.

  Raises:
    ValueError: at the first probe, if it is too small a batch for the one that
      was asked for, or the workload's loss cannot be computed on it.
  """
  batch = dict(batch)
  fresh = batch.pop(PROBE, None)
  with section('Probe'):
    probe = optimizer_state['probe']
    probe.fit(batch)
    if fresh is not None:
      is_first = probe.batch is None
      probe.set_aside(fresh)
      if is_first:
        with section('Swap'):
          optimizer_state['averager'].swap_out()
        model = optimizer_state['run'].model
        _check_loss(workload, model, model_state, probe.batch, rng)
  return train_step.update_params(
    workload,
    current_param_container,
    current_params_types,
    model_state,
    hyperparameters,
    batch,
    loss_type,
    optimizer_state,
    eval_results,
    global_step,
    rng,
    train_state,
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
  """Choose an average by the probe, and show it."""
  averager, batch = optimizer_state['averager'], optimizer_state['probe'].batch
  selector = optimizer_state['selector']
  is_new = averager.step != selector.chosen_at
  if averager.samples and batch is not None and is_new:
    with section('Probe'):
      averager.swap_out()
      model = optimizer_state['run'].model
      comparison = compare_candidates(
        workload, model, model_state, averager, batch, rng
      )
      chosen = selector.choose(
        comparison,
        averager.choice.selected,
        averager.step,
        optimizer_state['probe'].number,
      )
      averager.select(RAW if chosen is None else chosen)
    _log(workload, averager, comparison, global_step)
  return train_step.prepare_for_eval(
    workload,
    current_param_container,
    current_params_types,
    model_state,
    hyperparameters,
    loss_type,
    optimizer_state,
    eval_results,
    global_step,
    rng,
  )


# A checkpoint between two evaluations: a choice there would be one more than an
# undisturbed run makes.
prepare_for_checkpoint = train_step.prepare_for_eval


def example_losses(
  workload: spec.Workload,
  model: nn.Module,
  model_state: Any,
  batch: Batch,
  rng: Any,
) -> tuple[Tensor, Tensor]:
  """Loss of each example in evaluation mode, and the number of elements.

  The model is called without its wrappers: compiling it for one more shape, or
  broadcasting its buffers, would be billed.

  Returns:
    Losses [examples], summed over an example's elements (the tokens of a
    sequence), zero where masked; a scalar.
  """
  with torch.no_grad(), _uncompiled():
    logits, _ = workload.model_fn(
      params=models.unwrap(model),
      augmented_and_preprocessed_input_batch=batch,
      model_state=model_state,
      mode=spec.ForwardPassMode.EVAL,
      rng=rng,
      update_batch_norm=False,
      dropout_rate=0.0,
    )
    loss = workload.loss_fn(
      label_batch=batch['targets'],
      logits_batch=logits,
      mask_batch=batch.get('weights'),
    )
  losses = loss['per_example']
  elements = torch.as_tensor(loss['n_valid_examples'], device=losses.device)
  # Sums over many tokens, of which small differences are to be taken.
  return losses.double().reshape(len(losses), -1).sum(1), elements


def _uncompiled() -> contextlib.AbstractContextManager:
  """The benchmark compiles some losses; the probe's shape must not be the
  first that they see, nor one more. torch 2.5 has no such switch.
  """
  if not hasattr(torch.compiler, 'set_stance'):
    return contextlib.nullcontext()
  return torch.compiler.set_stance('force_eager')


def compare_candidates(
  workload: spec.Workload,
  model: nn.Module,
  model_state: Any,
  averager: Averager,
  batch: Batch,
  rng: Any,
) -> selection.Comparison:
  """Every candidate's losses on the same examples; a collective under DDP."""
  batch = _beside(model, batch)
  rows = []
  for which in range(len(averager.choice.names)):
    with averager.evaluating(which):
      losses, elements = example_losses(
        workload, model, model_state, batch, rng
      )
    rows.append(losses)
  losses = torch.stack(rows)
  return selection.compare(losses[:, _is_valid(batch)], elements)


def _beside(model: nn.Module, batch: Batch) -> Batch:
  """The batch on the model's device, where only DDP would have moved it."""
  device = next(model.parameters()).device
  return mapped(lambda t: t.to(device), batch)


def _is_valid(batch: Batch) -> Tensor:
  """Mask of the examples that are not padding as a whole."""
  rows, mask = num_examples(batch), batch.get('weights')
  if mask is None or len(mask) != rows:
    return torch.ones(rows, dtype=torch.bool)
  return mask.reshape(rows, -1).ne(0).any(1)


def _check_loss(
  workload: spec.Workload,
  model: nn.Module,
  model_state: Any,
  batch: Batch,
  rng: Any,
) -> None:
  """Fail in the first step, not at the first evaluation."""
  try:
    losses, elements = example_losses(
      workload, model, model_state, _beside(model, batch), rng
    )
    selection.compare(torch.stack([losses, losses]), elements)
  except torch.OutOfMemoryError:
    raise
  except Exception as error:
    # A workload may fail in any way.
    raise ValueError(
      f'Cannot choose among averages: the loss of {type(workload).__name__} '
      'cannot be computed in evaluation mode '
      f'({type(error).__name__}: {error}).'
    ) from error
  if len(losses) != num_examples(batch):
    raise ValueError(
      f'Cannot choose among averages: {type(workload).__name__} gives '
      f'{len(losses)} losses for {num_examples(batch)} examples.'
    )


def _log(
  workload: spec.Workload,
  averager: Averager,
  comparison: selection.Comparison,
  global_step: int,
) -> None:
  """The choice and the losses, beside the run's other measurements."""
  losses = dict(zip(averager.choice.names, comparison.means, strict=True))
  metrics: dict[str, float] = {
    f'probe_loss/{name}': loss for name, loss in losses.items()
  }
  metrics['averaging_choice'] = averager.choice.selected
  if workload.metrics_logger is not None:
    workload.metrics_logger.append_scalar_metrics(metrics, global_step)
  chosen = (
    'raw (no finite loss)'
    if averager.choice.selected == RAW
    else averager.choice.names[averager.choice.selected]
  )
  logging.info(
    '%d) evaluation sees %s; losses on the probe: %s',
    global_step,
    chosen,
    ', '.join(f'{name} {loss:.4g}' for name, loss in losses.items()),
  )
