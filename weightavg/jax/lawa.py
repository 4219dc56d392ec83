"""Uniform mean of the latest parameters (LAWA)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from weightavg.jax import sampling, trees


class LawaWeightsState(NamedTuple):
  """State for `lawa_weights`.

  Attributes:
    count: updates so far; shape=(), dtype=int32.
    num_samples: samples taken, also those that have left the window;
      shape=(), dtype=int32.
    num_skipped: samples left out as not finite; shape=(), dtype=int32.
    window: the samples, one array per leaf of shape=(window, *leaf.shape).
      Sample k is at index (k - 1) mod window; the rest is zero.
  """

  count: jax.Array  # type: ignore[assignment]
  num_samples: jax.Array
  num_skipped: jax.Array
  window: optax.Params


def lawa_weights(
  window: int,
  every: int = 1,
  start: int = 0,
  accumulator_dtype: Any = None,
  skip_nonfinite: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Keep the latest parameters; their mean is evaluated (LAWA).

  After k samples x_1, ..., x_k, the parameters after as many updates, with L
  the `window` and n = min(k, L),

    a_k = (x_{k-n+1} + ... + x_k) / n

  The optimizer trains the parameters; this transformation passes updates
  through unchanged. It must be the last one in a chain. A sample is one write
  into an array with a leading axis; `eval_params` forms the mean.

  Args:
    window: L, samples in the mean, in [1, inf).
    every: steps between two samples, in [1, inf).
    start: step before which no sample is taken, in [0, inf).
    accumulator_dtype: dtype of the window, of 16 bits or more. None takes the
      parameter's own: samples are exact copies. The mean is formed in float32
      at least.
    skip_nonfinite: leave a sample out, and count it, if one of its values is
      not finite in the dtype of the window. Costs one more read of the
      parameters at each sample.

  Returns:
    An `optax.GradientTransformationExtraArgs` with the state
    `LawaWeightsState`. Integer leaves and random keys are copied, the
    latest one alone.

  Raises:
    ValueError: as `ema_weights`.

  Examples:
    >>> import jax.numpy as jnp, optax
    >>> from weightavg.jax import eval_params, lawa_weights
    >>> optimizer = optax.chain(optax.sgd(1.0), lawa_weights(window=2))
    >>> params = jnp.array(0.0)
    >>> state = optimizer.init(params)
    >>> for gradient in (-1.0, -1.0, -1.0):
    ...   updates, state = optimizer.update(gradient, state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> float(eval_params(state, params))  # the mean of 2 and 3
    2.5

  Note:
    With `optax.inject_hyperparams`, name `window` and `accumulator_dtype` in
    `static_args`: they shape the state.

  References:
    Kaddour, Stop Wasting My Time! Saving Days of ImageNet and BERT Training
    with Latest Weight Averaging, 2022, arXiv 2209.14981.
  """
  trees.check_integer('window', window, 1)
  if isinstance(window, jax.Array):
    raise ValueError(
      'Invalid window: an array. It shapes the state: name it in static_args '
      'of inject_hyperparams.'
    )
  accumulator_dtype = trees.checked_dtype(accumulator_dtype)

  def slots(leaf: Any) -> jax.Array:
    dtype = accumulator_dtype or jnp.result_type(leaf)
    zeros = jnp.zeros_like(leaf, dtype=dtype)
    # Broadcast, not made: the sharding of the parameter carries over.
    return jnp.broadcast_to(zeros[None], (window, *zeros.shape))

  def init_average(params: optax.Params) -> optax.Params:
    trees.check_arrays(params, 'lawa_weights', accumulator_dtype)
    return trees.map_averaged(slots, params)

  def add_sample(
    samples: optax.Params,
    params: optax.Params,
    number: jax.Array,
    enters: jax.Array,
  ) -> optax.Params:
    slot = (number - 1) % window

    def add_leaf(slots: jax.Array, sample: jax.Array) -> jax.Array:
      if not trees.is_averaged(slots):
        return sample
      new = sample.astype(slots.dtype)
      return jax.lax.dynamic_update_index_in_dim(slots, new, slot, 0)

    # A branch: a choice between values would write into a copy of the window.
    return jax.lax.cond(
      enters,
      lambda old, new: jax.tree.map(add_leaf, old, new),
      lambda old, _: old,
      samples,
      params,
    )

  return sampling.sampled_average(
    'lawa_weights',
    LawaWeightsState,
    init_average,
    add_sample,
    every,
    start,
    skip_nonfinite,
    leading=1,
  )


def window_mean(state: LawaWeightsState) -> optax.Params:
  """Mean over the samples in the window, in float32 at least."""

  def mean(slots: jax.Array) -> jax.Array:
    if not trees.is_averaged(slots):
      return slots
    dtype = trees.average_dtype(slots.dtype)
    used = jnp.clip(state.num_samples, 1, slots.shape[0])
    # Slots without a sample are zero.
    return jnp.sum(slots, axis=0, dtype=dtype) / used.astype(
      jnp.finfo(dtype).dtype
    )

  return jax.tree.map(mean, state.window)
