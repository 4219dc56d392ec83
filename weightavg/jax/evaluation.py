"""From an optimizer's state to the weights that are evaluated."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from weightavg.jax import trees
from weightavg.jax.ema import EmaWeightsState
from weightavg.jax.lawa import LawaWeightsState, window_mean
from weightavg.jax.polynomial import PolynomialWeightsState
from weightavg.jax.primal import PrimalAverageState, average_before_update

AveragingState = (
  EmaWeightsState
  | LawaWeightsState
  | PolynomialWeightsState
  | PrimalAverageState
)
_NAMES = {
  EmaWeightsState: 'ema_weights',
  LawaWeightsState: 'lawa_weights',
  PolynomialWeightsState: 'polynomial_weights',
  PrimalAverageState: 'primal_average',
}
_STATES = tuple(_NAMES)


def averaging_states(opt_state: Any) -> tuple[AveragingState, ...]:
  """Find the states of all averaging transformations.

  Args:
    opt_state: a state of an optimizer, nested in any way: chains, masks,
      injected hyperparameters, `MultiSteps`, or a tree around them.

  Returns:
    The states, in the order of the chain; that of `primal_average` before
    those inside its base optimizer, which average z. Each may be given to
    `eval_params`.

  Examples:
    >>> import jax.numpy as jnp, optax
    >>> from weightavg.jax import averaging_states, ema_weights
    >>> optimizer = optax.chain(
    ...   optax.sgd(0.1), ema_weights(0.9), ema_weights(0.99))
    >>> len(averaging_states(optimizer.init(jnp.zeros(3))))
    2
  """
  leaves = jax.tree.leaves(
    opt_state, is_leaf=lambda node: isinstance(node, _STATES)
  )
  found: list[AveragingState] = []
  for leaf in leaves:
    if isinstance(leaf, AveragingState):
      found.append(leaf)
    if isinstance(leaf, PrimalAverageState):
      found.extend(averaging_states(leaf.base_state))
  return tuple(found)


def eval_params(opt_state: Any, params: optax.Params) -> Any:
  """Return the average that an optimizer's state holds.

  Args:
    opt_state: an averaging state, or a state with exactly one in it.
    params: the parameters that the training loop holds. The result has their
      tree, shapes and dtypes; a masked leaf, and every leaf before the first
      sample, is the parameter itself.

  Returns:
    A new tree, which shares no buffer with the state or the parameters.

  Raises:
    ValueError: if the state holds no averaging state or several, or one made
      for other parameters, by `jax.vmap` for several runs, or with arrays
      wrapped by `flax.nnx`.

  Examples:
    >>> import jax.numpy as jnp, optax
    >>> from weightavg.jax import ema_weights, eval_params
    >>> optimizer = optax.chain(optax.sgd(1.0), ema_weights(decay=0.9))
    >>> params = jnp.array([1.0, 2.0])
    >>> eval_params(optimizer.init(params), params)
    Array([1., 2.], dtype=float32)
  """
  is_one = isinstance(opt_state, AveragingState)
  found = (opt_state,) if is_one else averaging_states(opt_state)
  if not found:
    raise ValueError(
      'Invalid opt_state. It holds no averaging state: add ema_weights, '
      'lawa_weights or polynomial_weights to the end of the chain, or wrap the '
      'optimizer in primal_average.'
    )
  if len(found) > 1:
    names = ', '.join(_NAMES[type(state)] for state in found)
    raise ValueError(
      f'Invalid opt_state. It holds {len(found)} averaging states ({names}): '
      'give one of averaging_states(opt_state).'
    )
  (state,) = found
  _check_counter(state.num_samples)
  is_window = isinstance(state, LawaWeightsState)
  trees.check_same_tree(params, state[3], _NAMES[type(state)], int(is_window))
  has_samples = state.num_samples > 0
  averages = state[3]
  if isinstance(state, LawaWeightsState):
    averages = window_mean(state)
  elif isinstance(state, PrimalAverageState):
    averages = average_before_update(state, params)

  def show(average: Any, value: Any) -> Any:
    if trees.is_masked(average):
      return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), value)
    if trees.is_averaged(average):
      average = average.astype(jnp.result_type(value))
    return jnp.where(has_samples, average, value)

  return jax.tree.map(
    show,
    averages,
    params,
    is_leaf=trees.is_masked,
  )


def _check_counter(num_samples: Any) -> None:
  """Raise ValueError for a state of several runs, or one of wrapped arrays."""
  if not jax.tree_util.all_leaves([num_samples]):
    raise ValueError(
      'Invalid opt_state. Its num_samples is no array but of type '
      f'{type(num_samples).__name__}: give the arrays in what flax.nnx has '
      'wrapped, by nnx.as_pure of the state and of the parameters (flax 0.12).'
    )
  shape = np.shape(num_samples)
  if shape:
    raise ValueError(
      f'Invalid opt_state. Its num_samples has shape {shape}, as after '
      'jax.vmap or jax.pmap: call jax.vmap(eval_params).'
    )


def observe(
  averaging: optax.GradientTransformationExtraArgs,
  values: optax.Params,
  state: Any,
) -> Any:
  """Hand any tree to an averaging transformation as the next step's values.

  For what an optimizer does not update. BatchNorm's running statistics belong
  to the weights they were collected with: an average of the weights evaluated
  with the live statistics, or live weights with averaged ones, can be far worse
  than either. Average both in one tree, so that a sample holds both or none.

  Args:
    averaging: `ema_weights`, `lawa_weights` or `polynomial_weights`.
    values: the tree after the step.
    state: made by `averaging.init(values)`.

  Returns:
    The next state.

  Examples:
    >>> import jax.numpy as jnp
    >>> from weightavg.jax import ema_weights, eval_params, observe
    >>> averaging = ema_weights(decay=0.5)
    >>> model = {'params': jnp.array(0.0), 'batch_stats': jnp.array(10.0)}
    >>> state = averaging.init(model)
    >>> for step in (3.0, 6.0):
    ...   model = {'params': jnp.array(step), 'batch_stats': jnp.array(-step)}
    ...   state = observe(averaging, model, state)
    >>> average = eval_params(state, model)  # (1 * 3 + 2 * 6) / 3
    >>> float(average['params']), float(average['batch_stats'])
    (5.0, -5.0)
  """
  return averaging.update(None, state, values)[1]
