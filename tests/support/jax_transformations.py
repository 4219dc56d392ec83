"""Averaging transformations in JAX by name, and weights to average."""

from jax_support import import_jax
from jax_trees import params

jax, jnp, optax, wj = import_jax('jax', 'jax.numpy', 'optax', 'weightavg.jax')

SCHEMES = {
  'ema': lambda: wj.ema_weights(decay=0.5),
  'lawa': lambda: wj.lawa_weights(window=2),
  'polynomial': lambda: wj.polynomial_weights(power=1.0),
}


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
