"""Averaging transformations in JAX by name, and weights to average."""

import numpy as np
from jax_support import import_jax

jax, jnp, optax, wj = import_jax('jax', 'jax.numpy', 'optax', 'weightavg.jax')

SCHEMES = {
  'ema': lambda: wj.ema_weights(decay=0.5),
  'lawa': lambda: wj.lawa_weights(window=2),
  'polynomial': lambda: wj.polynomial_weights(power=1.0),
}
PARAMS = {'a': np.float32([1.0, 2.0]), 'b': {'c': np.float32([[3.0], [4.0]])}}


def params():
  return jax.tree.map(jnp.array, PARAMS)


def gradients(step):
  return jax.tree.map(lambda p: jnp.sin(p + step), params())


def train(optimizer, steps, params):
  """Train; what evaluation sees at the end."""

  @jax.jit
  def step(params, state, number):
    updates, state = optimizer.update(gradients(number), state, params)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for number in range(steps):
    params, state = step(params, state, number)
  return params, state, wj.eval_params(state, params)


def assert_trees_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)
