"""A host of the training step that chooses an average, and its workload."""

import copy
import io

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from weightavg import spec
from weightavg.pytorch import choosing_step
from weightavg.pytorch.build_nadamw import NADAMW

ROWS = 8


class Logger:
  """Keeps the rows of choices; those of training steps have other columns."""

  def __init__(self):
    self.rows = []

  def append_scalar_metrics(self, metrics, global_step):
    if 'averaging_choice' in metrics:
      self.rows.append((global_step, dict(metrics)))


class Workload:
  """Regression with targets and paddings, masks, a model state, BatchNorm."""

  step_hint = 40
  loss_type = spec.LossType.MEAN_SQUARED_ERROR

  def __init__(self):
    self.metrics_logger = Logger()
    self.trained_on = []
    self.looked_at = []
    # What a test puts into the losses of an evaluation.
    self.spoil = lambda call, losses: losses

  def model_fn(
    self,
    params,
    augmented_and_preprocessed_input_batch,
    model_state,
    mode,
    rng,
    update_batch_norm,
    dropout_rate=0.0,
  ):
    train = mode == spec.ForwardPassMode.TRAIN
    assert train == update_batch_norm
    assert train or type(params) is nn.Sequential
    inputs = augmented_and_preprocessed_input_batch['inputs']
    (self.trained_on if train else self.looked_at).append(inputs)
    params.train(train)
    return params(inputs), {'calls': model_state['calls'] + train}

  def loss_fn(
    self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0
  ):
    values, paddings = label_batch
    losses = (logits_batch - values).square() * (1 - paddings)
    count = (1 - paddings).sum()
    if mask_batch is not None:
      losses = losses * mask_batch[:, None]
      count = ((1 - paddings) * mask_batch[:, None]).sum()
    if not torch.is_grad_enabled():
      losses = self.spoil(len(self.looked_at), losses)
    return {
      'summed': losses.sum(),
      'n_valid_examples': count,
      'per_example': losses,
    }


def batches(seed=0, rank=0, world_size=1):
  """An endless queue; the last row of each batch is padding."""
  generator = torch.Generator().manual_seed(seed)
  while True:
    inputs = torch.randn(ROWS, 4, generator=generator)
    noise = torch.randn(ROWS, 2, generator=generator)
    paddings = torch.zeros(ROWS, 2)
    paddings[::3, 1] = 1.0
    weights = torch.ones(ROWS)
    weights[-1] = 0.0
    part = slice(rank * ROWS // world_size, (rank + 1) * ROWS // world_size)
    yield {
      'inputs': inputs[part],
      'targets': ((inputs[:, :2].sin() + noise)[part], paddings[part]),
      'weights': weights[part],
    }


class Host:
  """Calls the functions in the benchmark's order."""

  def __init__(self, queue=None, **knobs):
    torch.manual_seed(0)
    self.workload = Workload()
    self.model = nn.Sequential(
      nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 2)
    )
    if dist.is_initialized():
      self.model = DistributedDataParallel(self.model)
    point = {
      'learning_rate': 0.1,
      'schedule': 'constant',
      'averaging_every': 0.025,
      'averaging_probe_every': 0.1,
      'averaging_probe_memory': 0.5,
    }
    self.state = choosing_step.init_optimizer_state(
      self.workload, self.model, point | knobs, NADAMW
    )
    self.queue = batches() if queue is None else queue
    self.model_state = {'calls': 0}
    self.step = 0

  def select(self):
    return choosing_step.data_selection(
      self.workload,
      self.queue,
      self.state,
      self.model,
      None,
      None,
      self.step,
      0,
    )

  def update(self, batch=None):
    self.state, self.model, self.model_state = choosing_step.update_params(
      workload=self.workload,
      current_param_container=self.model,
      current_params_types=None,
      model_state=self.model_state,
      hyperparameters=None,
      batch=self.select() if batch is None else batch,
      loss_type=self.workload.loss_type,
      optimizer_state=self.state,
      eval_results=[],
      global_step=self.step,
      rng=0,
    )
    self.step += 1

  def prepare(self, prepare=choosing_step.prepare_for_eval):
    self.state, self.model, self.model_state = prepare(
      workload=self.workload,
      current_param_container=self.model,
      current_params_types=None,
      model_state=self.model_state,
      hyperparameters=None,
      loss_type=self.workload.loss_type,
      optimizer_state=self.state,
      eval_results=[],
      global_step=self.step,
      rng=0,
    )

  @property
  def averager(self):
    return self.state['averager']

  def weights(self):
    return copy.deepcopy([p.data for p in self.model.parameters()])

  def save(self):
    file = io.BytesIO()
    content = {
      'model': getattr(self.model, 'module', self.model).state_dict(),
      'state': {k: v.state_dict() for k, v in self.state.items()},
      'rest': [self.model_state, self.step],
    }
    torch.save(content, file)
    return file.getvalue()

  def restore(self, saved):
    content = torch.load(io.BytesIO(saved), weights_only=True)
    # The runner hands on the unwrapped module.
    self.model = getattr(self.model, 'module', self.model)
    self.model.load_state_dict(content['model'])
    for key, value in self.state.items():
      value.load_state_dict(content['state'][key])
    self.model_state, self.step = content['rest']


def rows(tensors):
  return {tuple(row.tolist()) for tensor in tensors for row in tensor}
