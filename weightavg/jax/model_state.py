"""Running statistics as a model returns them."""

from typing import Any

import jax
import jax.numpy as jnp

from weightavg.jax import trees


def in_nest(model_state: Any, like: Any) -> Any:
  """Put the leaves that a model returned into the containers of its first ones.

  A workload may return a dict where it began with flax's FrozenDict, and
  statistics of shape (1, 1, features) where it began with (features,), as the
  speech models do, or float32 where it began with bfloat16. The step is
  compiled once, for the first ones' shapes and dtypes.

  Args:
    model_state: as `model_fn` returned it.
    like: as it was given to `model_fn`.

  Raises:
    ValueError: there are other leaves, or floats in place of integers.
  """
  leaves, first = jax.tree.leaves(model_state), jax.tree.leaves(like)
  if [*map(_long_axes, leaves)] != [*map(_long_axes, first)]:
    raise ValueError(
      f'Invalid model_state. model_fn returns {len(leaves)} arrays with other '
      f'shapes than the {len(first)} of init_model_fn.'
    )
  structure: Any = jax.tree.structure(like)
  shaped = [_as(x, y) for x, y in zip(leaves, first, strict=True)]
  return jax.tree.unflatten(structure, shaped)


def _long_axes(leaf: Any) -> tuple[int, ...]:
  return tuple(length for length in jnp.shape(leaf) if length != 1)


def _as(leaf: Any, like: Any) -> jax.Array:
  dtype, given = jnp.result_type(like), jnp.result_type(leaf)
  if trees.is_averaged(leaf) and not trees.is_averaged(like):
    # A cast would drop the fraction.
    raise ValueError(
      f'Invalid model_state. model_fn returns an array of dtype {given}, '
      f'init_model_fn one of {dtype}.'
    )
  shaped = jnp.reshape(leaf, jnp.shape(like))
  return shaped if given == dtype else shaped.astype(dtype)
