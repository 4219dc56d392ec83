"""A workload of milliseconds in JAX, and a host that calls a submission.

The model has what makes averages and resuming hard: running statistics beside
its parameters, and dropout drawn from the step's key.
"""

import importlib
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from flax.training import checkpoints

from weightavg import spec

ROOT = pathlib.Path(__file__).parents[2]
BATCH = 16


class Workload:
  """Two-layer regression with a normalisation; what a submission touches."""

  step_hint = 500
  num_train_examples = 160
  name = 'mnist'  # batch size 16: ten steps per epoch
  metrics_logger = None

  def __init__(self):
    # One entry a trace, not one a call.
    self.traces = []
    self.smoothing = None

  def model_fn(
    self,
    params,
    augmented_and_preprocessed_input_batch,
    model_state,
    mode,
    rng,
    update_batch_norm,
    dropout_rate=0.5,
  ):
    self.traces.append((mode, update_batch_norm, dropout_rate))
    x = augmented_and_preprocessed_input_batch['inputs'] @ params['hidden']
    mean = model_state['mean']
    if mode == spec.ForwardPassMode.TRAIN:
      current = x.mean(0)
      mean = 0.9 * mean + 0.1 * current
      x = x - current
      x = x * jax.random.bernoulli(rng, 1 - dropout_rate, x.shape)
    else:
      x = x - mean
    logits = jnp.tanh(x) @ params['out'] + params['bias']
    # Another container than the one that came in: init may give a dict.
    return logits, FrozenDict({'mean': mean})

  def loss_fn(
    self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0
  ):
    self.smoothing = label_smoothing
    per_example = jnp.square(logits_batch - label_batch).sum(-1)
    if mask_batch is not None:
      per_example = per_example * mask_batch
    count = len(label_batch) if mask_batch is None else mask_batch.sum()
    return {
      'summed': per_example.sum(),
      'n_valid_examples': count,
      'per_example': per_example,
    }


def model():
  """Initial parameters and running statistics."""
  rng = np.random.default_rng(0)
  params = {
    'hidden': rng.normal(size=(4, 6)),
    'out': rng.normal(size=(6, 2)),
    'bias': np.zeros(2),
  }
  as_arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  return as_arrays, {'mean': jnp.zeros(6)}


def point(folder, **changes):
  path = ROOT / 'tuning_search_spaces' / f'{folder}.json'
  return json.loads(path.read_text())[0] | changes


class Host:
  """Calls a submission as the benchmark does."""

  def __init__(self, folder, hyperparameters=None, workload=None, **changes):
    name = f'submissions.{folder}.submission'
    self.submission = importlib.import_module(name)
    self.workload = workload or Workload()
    values = hyperparameters or point(folder, **changes)
    self.hyperparameters = types.SimpleNamespace(
      **values, _asdict=lambda: dict(values)
    )
    self.params, self.model_state = model()
    self.state = self.submission.init_optimizer_state(
      self.workload,
      self.params,
      self.model_state,
      self.hyperparameters,
      jax.random.PRNGKey(0),
    )
    self.step = 0

  def batches(self):
    rng = np.random.default_rng(self.step)
    while True:
      inputs = rng.normal(size=(BATCH, 4)).astype(np.float32)
      noise = rng.normal(size=(BATCH, 2)).astype(np.float32)
      yield {'inputs': inputs, 'targets': np.sin(inputs[:, :2]) + noise}

  def update(self, batch=None, **kwargs):
    common = {
      'workload': self.workload,
      'current_param_container': self.params,
      'model_state': self.model_state,
      'hyperparameters': self.hyperparameters,
      'optimizer_state': self.state,
      'global_step': self.step,
      'rng': jax.random.fold_in(jax.random.PRNGKey(1), self.step),
    }
    if batch is None:
      batch = self.submission.data_selection(
        input_queue=self.batches(), **common
      )
    self.state, self.params, self.model_state = self.submission.update_params(
      current_params_types=None,
      batch=batch,
      loss_type=spec.LossType.MEAN_SQUARED_ERROR,
      eval_results=[],
      **common,
      **kwargs,
    )
    self.step += 1

  def prepare_for_eval(self):
    shown = self.submission.prepare_for_eval(
      workload=self.workload,
      current_param_container=self.params,
      current_params_types=None,
      model_state=self.model_state,
      hyperparameters=self.hyperparameters,
      loss_type=spec.LossType.MEAN_SQUARED_ERROR,
      optimizer_state=self.state,
      eval_results=[],
      global_step=self.step,
      rng=jax.random.PRNGKey(2),
    )
    self.state, self.params, self.model_state = shown

  def save(self, folder):
    """Write a checkpoint as the benchmark does."""
    checkpoints.save_checkpoint(
      str(folder), self._saved(), step=self.step, overwrite=True
    )

  def restore(self, folder, device_axis):
    """Read it as the benchmark does, with or without its axis of devices."""
    saved = checkpoints.restore_checkpoint(str(folder), self._saved())
    if device_axis:
      # flax.jax_utils.replicate, before `jax.pmap` went.
      number = jax.device_count()
      for key in ('model_params', 'optimizer_state', 'model_state'):
        saved[key] = jax.tree.map(lambda x: np.stack([x] * number), saved[key])
    self.params, self.model_state = saved['model_params'], saved['model_state']
    self.state = saved['optimizer_state'], self.state[1]
    self.step = int(saved['global_step'])

  def _saved(self):
    return {
      'model_params': self.params,
      'optimizer_state': self.state[0],
      'model_state': self.model_state,
      'global_step': self.step,
    }

  def raw(self):
    """Copies of what is trained."""
    train = self.state[0].train
    return jax.tree.map(np.array, (train.params, train.model_state))

  def shown(self):
    """Copies of what the benchmark holds."""
    return jax.tree.map(np.array, (self.params, self.model_state))

  def everything(self):
    """Copies of the whole state and of what the benchmark holds."""
    return jax.tree.map(np.array, (self.state[0], self.params))
