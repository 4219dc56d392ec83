"""Exponential moving average of the parameters."""

from typing import Any, NamedTuple

import jax
import optax

from weightavg.jax import coefficients, recursive, trees


class EmaWeightsState(NamedTuple):
  """State for `ema_weights`.

  Attributes:
    count: updates so far; shape=(), dtype=int32.
    num_samples: samples in the average; shape=(), dtype=int32.
    num_skipped: samples left out as not finite; shape=(), dtype=int32.
    ema: the average; zeros before the first sample.
  """

  count: jax.Array  # type: ignore[assignment]
  num_samples: jax.Array
  num_skipped: jax.Array
  ema: optax.Params


def ema_weights(
  decay: float,
  every: int = 1,
  start: int = 0,
  accumulator_dtype: Any = None,
  skip_nonfinite: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Keep an exponential moving average of the parameters.

  The k-th sample x_k, the parameters after an update, enters as

    c_k = (1 - decay) / (1 - decay^k)
    a_k = a_{k-1} + c_k (x_k - a_{k-1})

  The weights of all samples sum to one and c_1 = 1. The average is debiased as
  it is stored, and the initial parameters do not enter.

  The optimizer trains the parameters; this transformation passes updates
  through unchanged. It must be the last one in a chain. `eval_params` returns
  the average for evaluation. `optax.ema` averages updates instead.

  Args:
    decay: per sample, in [0, 1). A horizon of N samples is 1 - 1 / N.
    every: steps between two samples, in [1, inf).
    start: step before which no sample is taken, in [0, inf).
    accumulator_dtype: dtype of the average, float32 or wider: in 16 bits an
      average soon stands still, as increments c_k (x_k - a_{k-1}) below about
      2^-9 of a_{k-1} in bfloat16, 2^-12 in float16, round to nothing. None
      takes float32, or the parameter's own dtype where that is wider.
    skip_nonfinite: leave a sample out, and count it, if one of its values is
      not finite in the dtype of the average. Costs one more read of the
      parameters at each sample.

  Returns:
    An `optax.GradientTransformationExtraArgs` with the state
    `EmaWeightsState`. Integer leaves and random keys are copied.

  Raises:
    ValueError: at construction for an argument out of range; at trace time
      for missing parameters, a leaf that is no array, a state of another
      transformation or a tree whose shapes changed.

  Examples:
    >>> import jax.numpy as jnp, optax
    >>> from weightavg.jax import ema_weights, eval_params
    >>> optimizer = optax.chain(optax.sgd(1.0), ema_weights(decay=0.5))
    >>> params = jnp.array(0.0)
    >>> state = optimizer.init(params)
    >>> for gradient in (-1.0, -1.0, -1.0):
    ...   updates, state = optimizer.update(gradient, state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> average = eval_params(state, params)
    >>> round(float(average), 4)  # (1 * 1 + 2 * 2 + 4 * 3) / 7
    2.4286

  Note:
    With `optax.inject_hyperparams`, `decay` and `every` become part of the
    state; name `accumulator_dtype` in `static_args`, and give
    `hyperparam_dtype=jnp.float32` for parameters of 16 bits, in which 0.999 is
    1. Inside `optax.MultiSteps` a step is one of the wrapped optimizer; behind
    it, set `every` to the number of its mini-steps. Under `jax.jit`, `init`
    makes zeros without the sharding of the parameters, as Adam's moments: give
    `out_shardings`, or call it outside.
  """
  trees.check_number('decay', decay, 0.0, 1.0)

  return recursive.recursive_average(
    'ema_weights',
    EmaWeightsState,
    lambda number: coefficients.of_ema(decay, number),
    every,
    start,
    accumulator_dtype,
    skip_nonfinite,
  )
