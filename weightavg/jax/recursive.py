"""Averages of constant memory: a_k = a_{k-1} + c_k (x_k - a_{k-1})."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from weightavg.jax import sampling, trees


def recursive_average(
  name: str,
  state_class: Any,
  coefficient: Callable[[jax.Array], jax.Array],
  every: int,
  start: int,
  accumulator_dtype: Any,
  skip_nonfinite: bool,
) -> optax.GradientTransformationExtraArgs:
  """Build a transformation from the coefficients of its recursion.

  Args:
    name: as for `sampling.sampled_average`.
    state_class: as for `sampling.sampled_average`.
    coefficient: maps the number of a sample, 1, 2, ..., a floating-point
      scalar, to its weight c_k; c_1 = 1.
    every: as for `sampling.sampled_average`.
    start: as for `sampling.sampled_average`.
    accumulator_dtype: dtype of the average, float32 or wider; None takes
      float32, or the parameter's own dtype where that is wider.
    skip_nonfinite: as for `sampling.sampled_average`.
  """
  accumulator_dtype = trees.checked_wide_dtype(
    accumulator_dtype, 'increments of the average would round to nothing'
  )

  def zeros(leaf: Any) -> jax.Array:
    dtype = accumulator_dtype or trees.average_dtype(jnp.result_type(leaf))
    # Zeros of its own, never an alias: both trees may be donated.
    return jnp.zeros_like(leaf, dtype=dtype)

  def init_average(params: optax.Params) -> optax.Params:
    trees.check_arrays(params, name, accumulator_dtype)
    return trees.map_averaged(zeros, params)

  def add_sample(
    average: optax.Params,
    params: optax.Params,
    number: jax.Array,
    enters: jax.Array,
  ) -> optax.Params:
    weight = coefficient(number.astype(trees.coefficient_dtype()))

    def add_leaf(old: jax.Array, sample: jax.Array) -> jax.Array:
      if not trees.is_averaged(old):
        return jnp.where(enters, sample, old)
      return jnp.where(enters, lerp(old, sample, weight), old)

    return jax.tree.map(add_leaf, average, params)

  return sampling.sampled_average(
    name, state_class, init_average, add_sample, every, start, skip_nonfinite
  )


def lerp(old: jax.Array, new: jax.Array, weight: jax.Array) -> jax.Array:
  """Move `old` towards `new`, exactly onto it at weight 1.

  The arithmetic is in float32 at least, also where `old` is stored in less.
  """
  dtype = trees.average_dtype(jnp.promote_types(old.dtype, new.dtype))
  step = new.astype(dtype) - old.astype(dtype)
  real = jnp.finfo(dtype).dtype
  near_old = old + weight.astype(real) * step
  near_new = new - (1.0 - weight).astype(real) * step
  return jnp.where(weight < 0.5, near_old, near_new).astype(old.dtype)
