"""Weights in JAX to average, and trees compared bit for bit."""

import numpy as np
from jax_support import import_jax

jax, jnp = import_jax('jax', 'jax.numpy')

PARAMS = {'a': np.float32([1.0, 2.0]), 'b': {'c': np.float32([[3.0], [4.0]])}}


def params(dtype=None):
  return jax.tree.map(lambda p: jnp.array(p, dtype), PARAMS)


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)
