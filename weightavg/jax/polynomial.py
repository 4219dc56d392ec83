"""Polynomial-decay average of the parameters."""

from typing import Any, NamedTuple

import jax
import optax

from weightavg.jax import coefficients, recursive, trees


class PolynomialWeightsState(NamedTuple):
  """State for `polynomial_weights`.

  Attributes:
    count: updates so far; shape=(), dtype=int32.
    num_samples: samples in the average; shape=(), dtype=int32.
    num_skipped: samples left out as not finite; shape=(), dtype=int32.
    average: the average; zeros before the first sample.
  """

  count: jax.Array  # type: ignore[assignment]
  num_samples: jax.Array
  num_skipped: jax.Array
  average: optax.Params


def polynomial_weights(
  power: float = 4.0,
  every: int = 1,
  start: int = 0,
  accumulator_dtype: Any = None,
  skip_nonfinite: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Keep a polynomial-decay average of the parameters.

  The k-th sample x_k, the parameters after an update, enters as

    c_k = min(1, (power + 1) / (power + k))
    a_k = a_{k-1} + c_k (x_k - a_{k-1})

  The horizon is a fraction 1 / (power + 1) of the samples so far: neither the
  length of the run nor a decay has to be known. A power of 0 is Polyak's
  uniform mean.

  The optimizer trains the parameters; this transformation passes updates
  through unchanged. It must be the last one in a chain. `eval_params` returns
  the average for evaluation.

  Args:
    power: in [0, inf).
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
    `PolynomialWeightsState`. Integer leaves and random keys are copied.

  Raises:
    ValueError: as `ema_weights`.

  Examples:
    >>> import jax.numpy as jnp, optax
    >>> from weightavg.jax import eval_params, polynomial_weights
    >>> optimizer = optax.chain(optax.sgd(1.0), polynomial_weights(power=0.0))
    >>> params = jnp.array(0.0)
    >>> state = optimizer.init(params)
    >>> for gradient in (-1.0, -1.0, -1.0):
    ...   updates, state = optimizer.update(gradient, state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> float(eval_params(state, params))  # the mean of 1, 2 and 3
    2.0

  References:
    Shamir and Zhang, Stochastic Gradient Descent for Non-smooth Optimization,
    2013, arXiv 1212.1824, section 4.
  """
  trees.check_number('power', power, 0.0, float('inf'))

  return recursive.recursive_average(
    'polynomial_weights',
    PolynomialWeightsState,
    lambda number: coefficients.of_polynomial(power, number),
    every,
    start,
    accumulator_dtype,
    skip_nonfinite,
  )
