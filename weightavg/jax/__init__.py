"""Weight averages as optax transformations.

>>> import jax.numpy as jnp, optax
>>> from weightavg.jax import ema_weights, eval_params
>>> optimizer = optax.chain(optax.sgd(1.0), ema_weights(decay=0.5))
>>> params = {'w': jnp.array([0.0])}
>>> state = optimizer.init(params)
>>> for _ in range(2):
...   updates, state = optimizer.update({'w': jnp.array([-3.0])}, state, params)
...   params = optax.apply_updates(params, updates)
>>> params['w'], eval_params(state, params)['w']
(Array([6.], dtype=float32), Array([5.], dtype=float32))
"""

from weightavg.jax.ema import EmaWeightsState, ema_weights
from weightavg.jax.evaluation import averaging_states, eval_params, observe
from weightavg.jax.lawa import LawaWeightsState, lawa_weights
from weightavg.jax.nadamw import nadamw, scale_by_nadam
from weightavg.jax.polynomial import (
  PolynomialWeightsState,
  polynomial_weights,
)
from weightavg.jax.primal import PrimalAverageState, primal_average
from weightavg.jax.schedules import warmup_schedule
from weightavg.jax.selection import SelectionState, init_selection, select

__all__ = [
  'EmaWeightsState',
  'LawaWeightsState',
  'PolynomialWeightsState',
  'PrimalAverageState',
  'SelectionState',
  'averaging_states',
  'ema_weights',
  'eval_params',
  'init_selection',
  'lawa_weights',
  'nadamw',
  'observe',
  'polynomial_weights',
  'primal_average',
  'scale_by_nadam',
  'select',
  'warmup_schedule',
]
