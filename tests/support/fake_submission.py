"""SGD with momentum, and an average that is swapped in for evaluations."""

import types

import torch

from weightavg import spec


class Average:
  def __init__(self, model, decay):
    self.model, self.decay = model, decay
    inner = getattr(model, 'module', model)
    self.params = [p for _, p in inner.named_parameters()]
    self.average = [p.detach().clone() for p in self.params]
    self.raw = []

  @torch.no_grad()
  def update(self):
    for a, p in zip(self.average, self.params, strict=True):
      a.lerp_(p, 1 - self.decay)

  @torch.no_grad()
  def swap_in(self):
    if not self.raw:
      self.raw = [p.detach().clone() for p in self.params]
    for a, p in zip(self.average, self.params, strict=True):
      p.copy_(a)

  @torch.no_grad()
  def swap_out(self):
    for r, p in zip(self.raw, self.params, strict=False):
      p.copy_(r)
    self.raw = []

  def state_dict(self):
    return {'average': self.average, 'raw': self.raw}

  def load_state_dict(self, state):
    if len(state['average']) != len(self.average):
      raise ValueError('Invalid state.')
    for a, s in zip(self.average, state['average'], strict=True):
      a.copy_(s)
    self.raw = [t.clone() for t in state['raw']]


def init_optimizer_state(
  workload, model_params, model_state, hyperparameters, rng
):
  # Self-tuned, it gets no hyperparameters.
  h = hyperparameters or types.SimpleNamespace(learning_rate=0.1, decay=0.5)
  if not 0 < h.learning_rate < 10:
    raise ValueError(
      f'Invalid learning_rate={h.learning_rate}. Must be in (0, 10).'
    )
  if not isinstance(h.decay, float):
    raise ValueError(f'Invalid decay={h.decay!r}. Must be a float.')
  return {
    'optimizer': torch.optim.SGD(
      model_params.parameters(), lr=h.learning_rate, momentum=0.9
    ),
    'average': Average(model_params, h.decay),
  }


def update_params(
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
  train_state=None,
):
  workload.on('update', global_step)
  average = optimizer_state['average']
  # The runner hands on the bare module after a restore.
  model = average.model
  average.swap_out()
  optimizer = optimizer_state['optimizer']
  optimizer.zero_grad()
  logits, model_state = workload.model_fn(
    model, batch, model_state, spec.ForwardPassMode.TRAIN, rng, True, 0.2
  )
  loss = workload.loss_fn(batch['targets'], logits)
  loss = loss['summed'] / loss['n_valid_examples']
  loss.backward()
  optimizer.step()
  average.update()
  if global_step % 3 == 0 and workload.metrics_logger is not None:
    workload.metrics_logger.append_scalar_metrics(
      {'loss': loss.item()}, global_step
    )
  return optimizer_state, model, model_state


def prepare_for_eval(
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
):
  optimizer_state['average'].swap_in()
  workload.on('prepare', global_step)
  return optimizer_state, optimizer_state['average'].model, model_state


def data_selection(
  workload,
  input_queue,
  optimizer_state,
  current_param_container,
  model_state,
  hyperparameters,
  global_step,
  rng,
):
  return next(input_queue)


def get_batch_size(workload_name):
  if workload_name != 'fake':
    raise ValueError(f'Unknown workload {workload_name}.')
  return 16
