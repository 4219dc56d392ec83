"""Leave out a step of an optimizer, as `optax.apply_if_finite` does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def unless_left_out(
  is_made: jax.Array,
  take_step: Callable[..., tuple[Any, ...]],
  before: tuple[Any, ...],
) -> tuple[Any, ...]:
  """Take a step of the base optimizer, or leave z and its state alone.

  Args:
    is_made: a scalar.
    take_step: maps (updates, z, state) to the next ones.
    before: what it is called with.
  """
  shapes, *kept_shapes = jax.eval_shape(take_step, *before)

  def zeros(leaf: Any, shape: Any) -> Any:
    if jnp.issubdtype(shape.dtype, jnp.inexact):
      # Like the gradient: in explicit mode the sharding is part of its type.
      return jnp.zeros_like(leaf, dtype=shape.dtype)
    return leaf

  def kept(leaf: Any, shape: Any) -> Any:
    # optax's moments of integer leaves become floats in their first step.
    return leaf if leaf.dtype == shape.dtype else leaf.astype(shape.dtype)

  def leave_out(updates: Any, *state: Any) -> tuple[Any, ...]:
    return (
      jax.tree.map(zeros, updates, shapes),
      *jax.tree.map(kept, state, tuple(kept_shapes)),
    )

  # A branch: a choice between values would keep the old and the new state.
  return jax.lax.cond(is_made, take_step, leave_out, *before)
