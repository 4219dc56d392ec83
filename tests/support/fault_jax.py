"""A workload of milliseconds in JAX that the local runner can run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lab.workloads import jax as twins
from weightavg import spec

_WIDTH = 16


class Queue:
  """Batches by number."""

  def __init__(self, seed: int, size: int) -> None:
    self.seed, self.size, self.position = seed, size, 0

  def __next__(self) -> dict[str, np.ndarray]:
    generator = np.random.default_rng([self.seed, self.position])
    self.position += 1
    inputs = generator.standard_normal((self.size, 8), np.float32)
    targets = np.sin(inputs.sum(1, keepdims=True))
    weights = np.ones(self.size, np.float32)
    return {'inputs': inputs, 'targets': targets, 'weights': weights}

  def skip(self, n: int) -> None:
    self.position += n


class Workload(spec.Workload):
  """Regression on an endless stream, with dropout and running statistics."""

  name = 'stdlib_lm'
  target_metric_name = 'loss'
  higher_is_better = False
  validation_target_value = 0.0
  test_target_value = 0.0
  loss_type = spec.LossType.MEAN_SQUARED_ERROR
  num_train_examples = 1000
  batch_size = 16
  eval_batch_size = 64
  num_eval_train_examples = 64
  num_validation_examples = 64
  num_test_examples = 64
  train_mean = 0.0
  train_stddev = 1.0
  max_allowed_runtime_sec = 1000
  eval_period_time_sec = 1
  step_hint = 20
  eval_every_steps = 5

  def has_reached_validation_target(self, eval_result):
    return eval_result['validation/loss'] < self.validation_target_value

  def has_reached_test_target(self, eval_result):
    return eval_result['test/loss'] < self.test_target_value

  def _build_input_queue(
    self,
    data_rng,
    split,
    data_dir,
    global_batch_size,
    cache=None,
    repeat_final_dataset=None,
    num_batches=None,
  ) -> Any:
    return Queue(int(data_rng[0]), global_batch_size)

  def init_model_fn(self, rng):
    keys = jax.random.split(jax.random.key(int(rng[0])), 2)
    params = {
      'hidden': {'kernel': 0.3 * jax.random.normal(keys[0], (8, _WIDTH))},
      'head': {
        'kernel': 0.3 * jax.random.normal(keys[1], (_WIDTH, 1)),
        'bias': jnp.zeros(1),
      },
    }
    self._param_shapes = jax.tree.map(lambda p: p.shape, params)
    self._param_types = jax.tree.map(
      lambda _: spec.ParameterType.WEIGHT, params
    )
    return params, {'batch_stats': {'mean': jnp.zeros(_WIDTH)}}

  def is_output_params(self, param_key):
    return 'head' in param_key

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
    inputs = augmented_and_preprocessed_input_batch['inputs']
    x = inputs @ params['hidden']['kernel']
    mean = model_state['batch_stats']['mean']
    if mode == spec.ForwardPassMode.TRAIN:
      mean, x = 0.9 * mean + 0.1 * x.mean(0), x - x.mean(0)
      key = jax.random.fold_in(jax.random.key(rng[0]), rng[1])
      x = x * jax.random.bernoulli(key, 1 - dropout_rate, x.shape)
    else:
      x = x - mean
    logits = jnp.tanh(x) @ params['head']['kernel'] + params['head']['bias']
    return logits, {'batch_stats': {'mean': mean}}

  def loss_fn(
    self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0
  ):
    losses = jnp.square(logits_batch - label_batch).mean(1)
    count = len(losses) if mask_batch is None else mask_batch.sum()
    losses = losses if mask_batch is None else losses * mask_batch
    return {
      'summed': losses.sum(),
      'n_valid_examples': count,
      'per_example': losses,
    }

  def _eval_model_on_split(
    self,
    split,
    num_examples,
    global_batch_size,
    params,
    model_state,
    rng,
    data_dir,
    global_step=0,
  ):
    batch = next(Queue(len(split), num_examples))
    mode = spec.ForwardPassMode.EVAL
    logits, _ = self.model_fn(params, batch, model_state, mode, rng, False)
    loss = self.loss_fn(batch['targets'], logits)['per_example'].mean()
    return {'loss': float(loss)}


def register() -> None:
  """Put the workload in the place of a twin, for this process."""
  twins.build_workload = lambda name: Workload()


def leaves(tree: Any) -> list[np.ndarray]:
  """Leaves of a tree in host memory."""
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
