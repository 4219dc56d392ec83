"""Averages at which training takes place: primal averaging.

Three sequences: z is stepped by a base optimizer, x is the average of z,
gradients are taken at y between them.

  y = mu x + (1 - mu) z
  z <- step of the base optimizer from z with the gradient at y
  x <- x + c (z - x)

The training loop holds y as its parameters, the state holds z. Computed is
x = y + (1 - 1/mu) (z - y), whose rounding errors are those of y, divided by mu.
So the state needs one model, as much as a first moment, which is switched off.
To store x and compute z would need as much, but divide the errors by 1 - mu, in
the sequence that the optimizer steps. With `accumulator_dtype` x is stored,
too: one model more, for parameters too coarse to hold it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from weightavg.jax import coefficients, ema, polynomial, trees
from weightavg.jax.coefficients import Coefficient
from weightavg.jax.left_out import unless_left_out
from weightavg.jax.recursive import lerp
from weightavg.schemes import Ema, ScheduleFree, Scheme


class PrimalAverageState(NamedTuple):
  """State for `primal_average`.

  Attributes:
    count: updates so far; shape=(), dtype=int32.
    num_samples: samples in the average; shape=(), dtype=int32.
    num_skipped: steps that were left out, and z that did not enter, as
      not finite; shape=(), dtype=int32.
    z: the base optimizer's iterate; masked where a leaf is not averaged.
    x: the average where it is stored, else an empty tuple.
    interpolation: mu with which y was made; shape=().
    coefficient: c of the last update, with which anything else that belongs to
      x may be averaged; shape=(). It is 0 where z did not enter, and 1 before
      the first sample, where x is z.
    weight_ratio: sum of the samples' weights in `ScheduleFree`, divided by the
      last of them; shape=().
    largest_rate: its largest learning rate so far; shape=().
    num_made: steps of the base optimizer, which a step that was left out is
      not; shape=(), dtype=int32.
    base_state: state of the base optimizer.
  """

  count: jax.Array  # type: ignore[assignment]
  num_samples: jax.Array
  num_skipped: jax.Array
  z: optax.Params
  x: optax.Params
  interpolation: jax.Array
  coefficient: jax.Array
  weight_ratio: jax.Array
  largest_rate: jax.Array
  num_made: jax.Array
  base_state: optax.OptState


def primal_average(
  base_optimizer: optax.GradientTransformation,
  scheme: Scheme | Coefficient,
  interpolation: float = 0.9,
  learning_rate: optax.ScalarOrSchedule | None = None,
  every: int | jax.Array = 1,
  start: int | jax.Array = 0,
  accumulator_dtype: Any = None,
  skip_nonfinite: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Let an average of the parameters take part in training.

    y = mu x + (1 - mu) z
    z <- step of the base optimizer from z with the gradient at y
    x <- x + c (z - x)

  The parameters are y: take gradients there. `eval_params` returns x for
  evaluation. The base optimizer is given z as its parameters, so that its
  weight decay acts on z. Switch its momentum off: y remembers past gradients
  through x. Nothing that changes updates may follow in a chain.

  With `ScheduleFree` this is Schedule-Free, with `Ema` Generalized Primal
  Averaging but for its start: c_1 = 1. `optax.contrib.schedule_free` decays
  weights from y.

  Args:
    base_optimizer: steps z.
    scheme: of x: `Ema` with a decay, `Polynomial` or `ScheduleFree`; or a
      function from the number of a sample, 1, 2, ..., to c in [0, 1], with
      c_1 = 1, which is not checked.
    interpolation: mu, in [0, 1). At 0 it is `ema_weights` or
      `polynomial_weights` behind the base optimizer.
    learning_rate: for `ScheduleFree`, whose samples it weighs: the base
      optimizer's number, in [0, inf), or schedule of the step, from 0 on. As
      for the base optimizer, a step that is left out does not count. None
      stands for a constant.
    every: steps between two samples, in [1, inf).
    start: step before which no sample is taken, in [0, inf); x, y and z are
      the same before the first one.
    accumulator_dtype: None stores z in the parameters' dtype and computes x.
      A dtype, float32 or wider, stores both x and z in it.
    skip_nonfinite: leave a step out, and count it, if one of the updates given
      is not finite: x, y, z and the base optimizer's state stay. If a z is not
      finite all the same, y and z continue from x. Costs a read of the updates
      and of z, and one more temporary of the model's size, z before it is kept.

  Returns:
    An `optax.GradientTransformationExtraArgs` with the state
    `PrimalAverageState`. Integer leaves and random keys are not averaged.

  Raises:
    ValueError: at construction for an argument out of range or a scheme that
      is not updated from its last value; at `init` for parameters narrower
      than float32 without an `accumulator_dtype`, and, outside of `jax.jit`,
      for a value that is not finite, as in a mask of -inf: x = y + (1 - 1/mu)
      (z - y) would be NaN. Leave such a leaf out with `optax.masked`. At trace
      time as `ema_weights`.

  Examples:
    >>> import jax.numpy as jnp, optax
    >>> from weightavg import Polynomial
    >>> from weightavg.jax import eval_params, primal_average
    >>> optimizer = primal_average(
    ...   optax.sgd(1.0), Polynomial(power=0.0), interpolation=0.5)
    >>> params = jnp.array(8.0)
    >>> state = optimizer.init(params)
    >>> for gradient in (1.0, 2.0, 4.0):  # z = 7, 5, 1
    ...   updates, state = optimizer.update(gradient, state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> average = eval_params(state, params)
    >>> round(float(average), 4), round(float(params), 4)  # (x + z) / 2
    (4.3333, 2.6667)

  Note:
    With `optax.inject_hyperparams`, name `base_optimizer`, `scheme` and
    `accumulator_dtype` in `static_args`.

  References:
    Defazio et al., The Road Less Scheduled, 2024, arXiv 2405.15682; Generalized
    Primal Averaging, arXiv 2512.17131.
  """
  coefficients.check(scheme, interpolation, learning_rate)
  accumulator_dtype = trees.checked_wide_dtype(
    accumulator_dtype, 'z takes the steps of the optimizer'
  )
  trees.check_integer('every', every, 1)
  trees.check_integer('start', start, 0)
  base_optimizer = optax.with_extra_args_support(base_optimizer)
  if trees.is_number(interpolation) and interpolation == 0.0:
    average = _watching(scheme, every, start, accumulator_dtype, skip_nonfinite)
    return optax.chain(base_optimizer, average)

  def init_fn(params: optax.Params) -> PrimalAverageState:
    trees.check_arrays(params, 'primal_average', accumulator_dtype)
    if accumulator_dtype is None:
      _check_wide(params)
    real = trees.coefficient_dtype()

    def copied() -> optax.Params:
      return jax.tree.map(
        lambda leaf: (
          jnp.array(leaf, accumulator_dtype, copy=True)
          if trees.is_averaged(leaf)
          else optax.MaskedNode()
        ),
        params,
      )

    z = copied()
    _check_finite(z)
    x = () if accumulator_dtype is None else copied()
    # Some optimizers keep the parameters that they are initialised with.
    base_state = base_optimizer.init(trees.filled(z, params))
    # Arrays of their own: a donated buffer must not occur twice.
    return PrimalAverageState(
      count=jnp.zeros([], jnp.int32),
      num_samples=jnp.zeros([], jnp.int32),
      num_skipped=jnp.zeros([], jnp.int32),
      z=z,
      x=x,
      interpolation=jnp.array(interpolation, real, copy=True),
      coefficient=jnp.ones([], real),
      weight_ratio=jnp.zeros([], real),
      largest_rate=jnp.zeros([], real),
      num_made=jnp.zeros([], jnp.int32),
      base_state=trees.unshared(base_state, z, params),
    )

  def update_fn(
    updates: optax.Updates,
    state: PrimalAverageState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, PrimalAverageState]:
    if params is None:
      raise ValueError(
        'Missing params. primal_average moves the parameters: call '
        'update(updates, state, params).'
      )
    if updates is None:
      raise ValueError(
        'Missing updates. primal_average trains: observe takes ema_weights, '
        'lawa_weights or polynomial_weights.'
      )
    if not isinstance(state, PrimalAverageState):
      raise ValueError(
        f'Invalid state of type {type(state).__name__}. primal_average takes '
        'a PrimalAverageState.'
      )
    trees.check_same_tree(params, state.z, 'primal_average')
    x = average_before_update(state, params)

    def take_step(updates: Any, z: Any, base_state: Any) -> tuple[Any, ...]:
      updates, base_state = base_optimizer.update(
        updates, base_state, trees.filled(z, params), **extra_args
      )
      z = trees.map_unmasked(lambda z, u: (z + u).astype(z.dtype), z, updates)
      return updates, z, base_state

    before, is_made = (updates, state.z, state.base_state), None
    if skip_nonfinite:
      is_made = trees.all_finite(updates)
      updates, z, base_state = unless_left_out(is_made, take_step, before)
    else:
      updates, z, base_state = take_step(*before)
    new, is_kept = _counted(state, z, is_made)
    c = new.coefficient
    mu = jnp.array(interpolation, c.dtype, copy=True)

    def keep(value: jax.Array, old: jax.Array) -> jax.Array:
      return value if is_kept is None else jnp.where(is_kept, value, old)

    def move(z: jax.Array, x: jax.Array, y: Any) -> jax.Array:
      # y of the new x and z, in one step from the old x.
      step = keep(lerp(x, z, 1.0 - mu * (1.0 - c)), x) - y
      return step if is_made is None else jnp.where(is_made, step, 0.0)

    stored = state.x
    if accumulator_dtype is not None:
      stored = trees.map_unmasked(lambda z, x: keep(lerp(x, z, c), x), z, x)
    updates = trees.filled(trees.map_unmasked(move, z, x, params), updates)
    new = new._replace(
      z=trees.map_unmasked(keep, z, x),
      x=stored,
      # y of a step that is left out was made with the former one.
      interpolation=mu
      if is_made is None
      else jnp.where(is_made, mu, state.interpolation),
      base_state=base_state,
    )
    return updates, new

  def _counted(
    state: PrimalAverageState, z: optax.Params, is_made: jax.Array | None
  ) -> tuple[PrimalAverageState, jax.Array | None]:
    """Find c of this update, and whether z is kept (None: it always is)."""
    count = trees.increment(state.count)
    is_sampled = (count >= start) & (count % every == 0)
    has_begun = state.num_samples > 0
    c, weight_ratio, largest_rate = _weigh(state)
    # Before the first sample x follows z.
    c = jnp.where(is_sampled, c, jnp.where(has_begun, 0.0, 1.0))
    enters, is_kept = is_sampled, None
    num_skipped, num_made = state.num_skipped, trees.increment(state.num_made)
    if is_made is not None:
      is_kept = trees.all_finite(z)
      is_sound = is_made & is_kept
      enters = is_sampled & is_sound
      c = jnp.where(is_sound, c, 0.0)
      num_skipped = num_skipped + (~is_sound).astype(jnp.int32)
      num_made = jnp.where(is_made, num_made, state.num_made)
    return state._replace(
      count=count,
      num_samples=state.num_samples + enters.astype(jnp.int32),
      num_skipped=num_skipped,
      num_made=num_made,
      coefficient=c.astype(state.coefficient.dtype),
      weight_ratio=jnp.where(enters, weight_ratio, state.weight_ratio),
      largest_rate=jnp.where(enters, largest_rate, state.largest_rate),
    ), is_kept

  def _weigh(
    state: PrimalAverageState,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """c of the next sample, and the numbers on which it depends."""
    number = (state.num_samples + 1).astype(trees.coefficient_dtype())
    if not isinstance(scheme, ScheduleFree):
      c = coefficients.of_scheme(scheme)(number)
      return jnp.asarray(c), state.weight_ratio, state.largest_rate
    rate: Any = 1.0 if learning_rate is None else learning_rate
    rate = jnp.asarray(rate(state.num_made) if callable(rate) else rate)
    if rate.shape:
      raise ValueError(
        f'Invalid learning_rate of shape {rate.shape}. Must be ().'
      )
    largest = jnp.maximum(state.largest_rate, rate.astype(number.dtype))
    # Powers of the number and their sum do not fit into float32; quotients do.
    has_rate = largest > 0.0
    # No 0/0: `jax_debug_nans` would see it.
    rates = state.largest_rate / jnp.where(has_rate, largest, 1.0)
    last = (1.0 - 1.0 / number) ** scheme.step_power * rates**2
    ratio = jnp.where(has_rate, 1.0 + state.weight_ratio * last, 0.0)
    c = jnp.where(has_rate, 1.0 / jnp.maximum(ratio, 1.0), 1.0)
    return c, ratio, largest

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def average_before_update(
  state: PrimalAverageState, params: optax.Params
) -> optax.Params:
  """x of a state and the parameters y that belong to it.

  Returns:
    A tree, masked where a leaf is not averaged. It may share buffers with the
    state.
  """
  if not isinstance(state.x, tuple) or state.x:
    return state.x
  before = 1.0 - 1.0 / state.interpolation

  def compute(z: jax.Array, y: jax.Array) -> jax.Array:
    return y + before.astype(jnp.finfo(z.dtype).dtype) * (z - y)

  return trees.map_unmasked(compute, state.z, params)


def _check_wide(params: optax.Params) -> None:
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if trees.is_narrow(leaf):
      where = jax.tree_util.keystr(path)
      raise ValueError(
        f'Invalid params{where} of dtype {jnp.result_type(leaf)}. '
        'primal_average computes the average from parameters of float32 or '
        'wider; accumulator_dtype stores it instead.'
      )


def _check_finite(z: optax.Params) -> None:
  """Raise ValueError for the first leaf that is known and not finite."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(z):
    if isinstance(leaf, jax.core.Tracer):
      continue
    # device_get: transfer_guard_device_to_host lets it pass.
    if not jax.device_get(trees.all_finite(leaf)):
      where = jax.tree_util.keystr(path)
      raise ValueError(
        f'Invalid params{where}. primal_average averages finite values: leave '
        'this leaf out with optax.masked.'
      )


def _watching(
  scheme: Any, *options: Any
) -> optax.GradientTransformationExtraArgs:
  """Build the transformation of an average that does not take part."""
  if isinstance(scheme, Ema):
    return ema.ema_weights(scheme.decay, *options)  # type: ignore[arg-type]
  return polynomial.polynomial_weights(scheme.power, *options)
