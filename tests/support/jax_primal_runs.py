"""Short runs in JAX that train at an average."""

import numpy as np
from jax_support import import_jax

from weightavg import Ema, Polynomial, ScheduleFree

jax, jnp, optax, wj = import_jax('jax', 'jax.numpy', 'optax', 'weightavg.jax')

SCHEMES = {
  'ema': Ema(0.75),
  'polynomial': Polynomial(3.0),
  'polyak': Polynomial(0.0),
  'schedule_free': ScheduleFree(2.0),
}


def gradients(y, step):
  return jax.tree.map(lambda p: jnp.sin(3 * p + step), y)


def train(optimizer, steps, params):
  """Train by gradients at the parameters; y, x and z after every step."""

  @jax.jit
  def step(params, state, number):
    updates, state = optimizer.update(gradients(params, number), state, params)
    return optax.apply_updates(params, updates), state

  state, seen = optimizer.init(params), []
  for number in range(steps):
    params, state = step(params, state, number)
    seen.append((params, wj.eval_params(state, params)))
  return params, state, seen


def assert_close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def build(base=None, **options):
  return wj.primal_average(base or optax.sgd(0.1), Ema(0.75), **options)
