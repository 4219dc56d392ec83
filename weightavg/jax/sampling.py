"""The part that all averaging transformations share: when a sample enters.

An averaging transformation is the last one in a chain. Its update leaves the
updates as they are, forms the parameters that they lead to, and hands these to
its average at every `every`-th step from step `start` on.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from weightavg.jax import trees

# Maps (tree of parameters) to (tree of buffers).
InitAverage = Callable[[optax.Params], optax.Params]
# Maps (buffers, parameters, number of this sample, whether it enters) to
# buffers. The number is 1 for the first sample.
AddSample = Callable[
  [optax.Params, optax.Params, jax.Array, jax.Array], optax.Params
]


def sampled_average(
  name: str,
  state_class: Any,
  init_average: InitAverage,
  add_sample: AddSample,
  every: int,
  start: int,
  skip_nonfinite: bool,
  leading: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """Build the transformation around the buffers of one average.

  Args:
    name: of the transformation, for messages.
    state_class: NamedTuple with the fields count, num_samples, num_skipped and
      the buffers, in this order.
    init_average: checks the parameters and makes the buffers.
    add_sample: takes one sample in.
    every: steps between two samples, in [1, inf).
    start: step before which no sample is taken, in [0, inf).
    skip_nonfinite: leave out samples with a value that is not finite in the
      dtype of its buffer.
    leading: axes that averaged buffers have in front of those of parameters.

  Returns:
    A `GradientTransformationExtraArgs`.
  """
  trees.check_integer('every', every, 1)
  trees.check_integer('start', start, 0)
  samples_all = isinstance(every, int) and every == 1
  samples_all = samples_all and isinstance(start, int) and start <= 1

  def init_fn(params: optax.Params) -> Any:
    # Three arrays of their own: a donated buffer must not occur twice.
    zeros = [jnp.zeros([], jnp.int32) for _ in range(3)]
    return state_class(*zeros, init_average(params))

  def take_sample(state: Any, params: optax.Params) -> Any:
    enters = jnp.array(True)
    if skip_nonfinite:
      enters = trees.all_finite(trees.as_stored(params, state[3]))
    num_samples = state.num_samples + enters.astype(jnp.int32)
    num_skipped = state.num_skipped + (~enters).astype(jnp.int32)
    average = add_sample(state[3], params, num_samples, enters)
    return state_class(state.count, num_samples, num_skipped, average)

  def update_fn(
    updates: optax.Updates,
    state: Any,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, Any]:
    del extra_args
    if params is None:
      raise ValueError(
        f'Missing params. {name} averages the parameters: call '
        'update(updates, state, params).'
      )
    if not isinstance(state, state_class):
      raise ValueError(
        f'Invalid state of type {type(state).__name__}. {name} takes a '
        f'{state_class.__name__}.'
      )
    trees.check_same_tree(params, state[3], name, leading)
    if updates is None:
      # Numbers among them are arrays in the state.
      values = trees.map_unmasked(jnp.asarray, params)
    else:
      values = optax.apply_updates(params, updates)
    count = trees.increment(state.count)
    state = state._replace(count=count)
    if samples_all:
      return updates, take_sample(state, values)
    is_sampled = (count >= start) & (count % every == 0)
    # A branch, so that the other steps do not touch the average's memory.
    return updates, jax.lax.cond(
      is_sampled, take_sample, lambda state, _: state, state, values
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
