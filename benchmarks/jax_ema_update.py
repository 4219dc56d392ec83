"""Measure one EMA update in JAX against one fused lerp of the same bytes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measure import SHAPES, Ratio, compare, merge
from weightavg.jax import ema_weights, observe

DECAY = 0.999


def _update(skip_nonfinite: bool) -> Callable[[], Any]:
  keys = jax.random.split(jax.random.key(0), len(SHAPES))
  params = [
    jax.random.normal(key, shape)
    for key, shape in zip(keys, SHAPES, strict=True)
  ]
  averaging = ema_weights(DECAY, skip_nonfinite=skip_nonfinite)
  state = averaging.init(params)

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state: Any, params: Any) -> Any:
    return observe(averaging, params, state)

  def call() -> None:
    nonlocal state
    state = jax.block_until_ready(update(state, params))

  return call


def _flat_lerp() -> Callable[[], Any]:
  size = sum(int(jnp.prod(jnp.array(shape))) for shape in SHAPES)
  average, sample = jnp.zeros(size), jnp.ones(size)

  @functools.partial(jax.jit, donate_argnums=0)
  def lerp(average: jax.Array, sample: jax.Array) -> jax.Array:
    return average + (1 - DECAY) * (sample - average)

  def call() -> None:
    nonlocal average
    average = jax.block_until_ready(lerp(average, sample))

  return call


def measure() -> dict[str, Ratio]:
  against = 'one compiled lerp over one flat array of the same bytes'
  return merge(
    [
      compare(_update(True), {'jax_ema_update/lerp': (against, _flat_lerp())}),
      # Without the check for NaN and infinity.
      compare(
        _update(False),
        {'jax_ema_update_unchecked/lerp': (against, _flat_lerp())},
      ),
    ]
  )
