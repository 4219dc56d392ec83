"""AlgoPerf's contract in JAX, on top of a local workload in PyTorch.

Data, splits, targets and sizes are those of the PyTorch workload; initial
weights are its, converted. A twin adds the model in flax.
"""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from lab.core.host_types import is_training
from lab.workloads.base import LocalWorkload
from lab.workloads.jax import weights
from lab.workloads.modules import Shape
from weightavg import spec

Batch = dict[str, Any]


def masked_loss(
  per_example: jax.Array, mask: jax.Array | None
) -> dict[str, jax.Array]:
  """AlgoPerf's loss dictionary; as `lab.workloads.base.masked_loss`."""
  if mask is None:
    n_valid = jnp.asarray(per_example.size, per_example.dtype)
  else:
    mask = mask.astype(per_example.dtype)
    mask = mask.reshape(mask.shape + (1,) * (per_example.ndim - mask.ndim))
    mask = jnp.broadcast_to(mask, per_example.shape)
    per_example = per_example * mask
    n_valid = mask.sum()
  return {
    'summed': per_example.sum(),
    'n_valid_examples': n_valid,
    'per_example': per_example,
  }


class _ArrayQueue(Iterator[Batch]):
  """The batches of a torch queue as numpy arrays."""

  def __init__(self, queue: Any) -> None:
    self._queue = queue

  def __next__(self) -> Batch:
    return {name: tensor.numpy() for name, tensor in next(self._queue).items()}

  def skip(self, n: int) -> None:
    """Leave out the next n batches."""
    self._queue.skip(n)


class JaxWorkload(LocalWorkload):
  """A local workload in JAX; a mixin before the workload in PyTorch.

  A twin sets `module`, whose `__call__(inputs, train, dropout_rate)` gives
  logits, and may define `_jax_metric_sums`.
  """

  module: nn.Module

  def _build_input_queue(self, *args: Any, **kwargs: Any) -> Iterator[Batch]:
    """Endless batches of numpy arrays, with O(1) `skip(n)`."""
    return _ArrayQueue(super()._build_input_queue(*args, **kwargs))

  def init_model_fn(self, rng: Any) -> tuple[Any, Any]:
    """Return the parameters and running statistics of the PyTorch model."""
    torch.manual_seed(int(rng[0]))
    collections = weights.to_flax(self._make_model())
    collections = jax.tree.map(jnp.asarray, collections)
    params, statistics = collections['params'], collections['batch_stats']
    self._param_shapes = jax.tree.map(lambda p: Shape(p.shape), params)
    self._param_types = jax.tree.map(
      lambda _: spec.ParameterType.WEIGHT, params
    )
    return params, {'batch_stats': statistics} if statistics else None

  def model_fn(  # type: ignore[override]
    self,
    params: Any,
    augmented_and_preprocessed_input_batch: Batch,
    model_state: Any,
    mode: spec.ForwardPassMode,
    rng: Any,
    update_batch_norm: bool,
    dropout_rate: float = 0.0,
  ) -> tuple[jax.Array, Any]:
    """Logits and running statistics.

    Args:
      params: tree of parameters.
      augmented_and_preprocessed_input_batch: with the key 'inputs'.
      model_state: running statistics, or None.
      mode: TRAIN or EVAL (no dropout).
      rng: two integers, or a key.
      update_batch_norm: whether a TRAIN pass moves the running statistics.
      dropout_rate: in [0, 1).
    """
    train = is_training(mode)
    logits, changed = self.module.apply(
      {'params': params, **(model_state or {})},
      augmented_and_preprocessed_input_batch['inputs'],
      train,
      dropout_rate,
      rngs={'dropout': jax.random.fold_in(jax.random.key(rng[0]), rng[1])},
      mutable=['batch_stats'],
    )
    moves = train and update_batch_norm and model_state is not None
    return logits, dict(changed) if moves else model_state

  def loss_fn(
    self,
    label_batch: jax.Array,
    logits_batch: jax.Array,
    mask_batch: jax.Array | None = None,
    label_smoothing: float = 0.0,
  ) -> dict[str, jax.Array]:
    """Cross-entropy of each label."""
    classes = logits_batch.shape[-1]
    targets = jax.nn.one_hot(label_batch, classes)
    smoothed = optax.smooth_labels(targets, label_smoothing)
    losses = optax.softmax_cross_entropy(logits_batch, smoothed)
    return masked_loss(losses, mask_batch)

  def _jax_metric_sums(
    self, batch: Batch, logits: jax.Array
  ) -> dict[str, jax.Array]:
    """Weighted sums over a batch of metrics other than the loss."""
    del batch, logits
    return {}

  @functools.cached_property
  def _compiled_sums(self) -> Any:
    def sums(params: Any, model_state: Any, batch: Batch, rng: Any) -> Any:
      logits, _ = self.model_fn(
        params, batch, model_state, spec.ForwardPassMode.EVAL, rng, False
      )
      loss = self.loss_fn(batch['targets'], logits, batch['weights'])
      return self._jax_metric_sums(batch, logits) | {
        'loss': loss['summed'],
        'count': loss['n_valid_examples'],
      }

    return jax.jit(sums)

  def _eval_model_on_split(
    self,
    split: str,
    num_examples: int,
    global_batch_size: int,
    params: Any,
    model_state: Any,
    rng: Any,
    data_dir: str,
    global_step: int = 0,
  ) -> dict[str, float]:
    """Metrics of a whole split."""
    del global_step
    queue = self._build_input_queue(rng, split, data_dir, global_batch_size)
    rng = np.asarray(rng)
    parts = [
      self._compiled_sums(params, model_state, next(queue), rng)
      for _ in range(-(-num_examples // global_batch_size))
    ]
    # float64: sums over 10^4 examples must not lose what averaging gains.
    totals = {key: sum(float(part[key]) for part in parts) for key in parts[0]}
    count = totals.pop('count')
    return {key: value / count for key, value in totals.items()}
