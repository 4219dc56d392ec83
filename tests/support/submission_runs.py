"""The submissions by their folders, and a host that drives those in PyTorch."""

import importlib
import json
import pathlib
import types

import pytest
import torch
from jax_support import HAS_JAX, REASON
from torch import nn

from weightavg import spec

ROOT = pathlib.Path(__file__).parents[2]
ALL = sorted(
  p.parent.name for p in (ROOT / 'submissions').glob('*/submission.py')
)
# Those in JAX keep the same interface; test_jax_submissions.py runs them.
FOLDERS = [folder for folder in ALL if not folder.endswith('_jax')]
# Evaluated on the weights that were trained.
BARE = {'nadamw', 'shampoo'}
AUTO = {'nadamw_auto', 'shampoo_auto'}
# Trained at an average.
PRIMAL = {'nadamw_primal', 'shampoo_primal'}
# Without a budget there is nothing to plan on the clock.
UNPLANNED = {'nadamw_schedule_free', 'shampoo_schedule_free'}


class Workload:
  """Two-layer regression; just what a submission touches."""

  step_hint = 500
  max_allowed_runtime_sec = 3600
  num_train_examples = 160
  name = 'mnist'  # batch size 16: ten steps per epoch
  metrics_logger = None

  def __init__(self):
    self.calls = []
    self.smoothing = None

  def model_fn(
    self,
    params,
    augmented_and_preprocessed_input_batch,
    model_state,
    mode,
    rng,
    update_batch_norm,
    dropout_rate='own',
  ):
    self.calls.append((mode, update_batch_norm, dropout_rate))
    logits = params(augmented_and_preprocessed_input_batch['inputs'])
    return logits, (model_state or 0) + 1

  def loss_fn(
    self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0
  ):
    self.smoothing = label_smoothing
    target = label_batch[0] if isinstance(label_batch, tuple) else label_batch
    per_example = (logits_batch - target).pow(2).sum(-1)
    if mask_batch is not None:
      per_example = per_example * mask_batch
    count = len(target) if mask_batch is None else mask_batch.sum()
    return {
      'summed': per_example.sum(),
      'n_valid_examples': count,
      'per_example': per_example,
    }


def load(folder):
  if folder.endswith('_jax') and not HAS_JAX:
    pytest.skip(REASON)
  return importlib.import_module(f'submissions.{folder}.submission')


def point(folder, **changes):
  points = json.loads(
    (ROOT / 'tuning_search_spaces' / f'{folder}.json').read_text()
  )
  values = points[0] | changes
  return types.SimpleNamespace(**values, _asdict=lambda: dict(values))


class Host:
  """Calls a submission as the benchmark does."""

  def __init__(self, folder, hyperparameters=None, **changes):
    self.submission = load(folder)
    self.workload = Workload()
    torch.manual_seed(0)
    self.model = self.make_model()
    self.model_state = None
    self.hyperparameters = hyperparameters or point(folder, **changes)
    self.state = self.submission.init_optimizer_state(
      self.workload, self.model, None, self.hyperparameters, (0, 1)
    )
    self.step = 0

  def make_model(self):
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))

  def batches(self):
    while True:
      generator = torch.Generator().manual_seed(self.step)
      yield {
        'inputs': torch.randn(16, 4, generator=generator),
        'targets': torch.randn(16, 2, generator=generator),
      }

  def update(self, batch=None, **kwargs):
    if batch is None:
      batch = self.submission.data_selection(
        self.workload,
        self.batches(),
        self.state,
        self.model,
        None,
        self.hyperparameters,
        self.step,
        (0, 1),
      )
    self.state, self.model, self.model_state = self.submission.update_params(
      workload=self.workload,
      current_param_container=self.model,
      current_params_types=None,
      model_state=self.model_state,
      hyperparameters=self.hyperparameters,
      batch=batch,
      loss_type=spec.LossType.MEAN_SQUARED_ERROR,
      optimizer_state=self.state,
      eval_results=[],
      global_step=self.step,
      rng=(0, 1),
      **kwargs,
    )
    self.step += 1

  def prepare_for_eval(self):
    self.state, self.model, self.model_state = self.submission.prepare_for_eval(
      workload=self.workload,
      current_param_container=self.model,
      current_params_types=None,
      model_state=self.model_state,
      hyperparameters=self.hyperparameters,
      loss_type=spec.LossType.MEAN_SQUARED_ERROR,
      optimizer_state=self.state,
      eval_results=[],
      global_step=self.step,
      rng=(0, 1),
    )

  def weights(self):
    return torch.cat([p.detach().flatten() for p in self.model.parameters()])
