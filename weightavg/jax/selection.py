"""The rule by which one of several averages is chosen, as pure functions.

All candidates are evaluated on the same examples, so the difference of their
losses example by example counts, which is far less noisy than the losses. With
l_ij the loss of candidate i on example j (summed over its elements), w_j the
weight of the example, p the previous choice and N the number of valid elements,
weighted likewise:

  L_i  = sum_j w_j l_ij / N
  d_ij = l_pj - l_ij
  SE_i = sqrt(V_i sum_j w_j^2) / N,   V_i the variance of the d_ij

The choice is the candidate of lowest loss (the first of equal ones) among those
with L_p - L_i > SE_i; if there is none, p stays. A candidate whose loss
is not finite is out; if p is out, or there is none yet, the lowest of all is
chosen; if all are out, nothing is. With a single example there is no SE, and p
stays.

Examples of the latest probe weigh 1, those of the k-th probe before it
memory^k. Differences are taken per example, before any sum: float32 suffices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from weightavg.jax import trees


class Sums(NamedTuple):
  """Sums over the examples of one probe or of several, for C candidates.

  Attributes:
    losses: sum_j w_j l_ij; shape=(C,).
    gains: sum_j w_j (l_kj - l_ij) at [k, i]; shape=(C, C).
    squares: sum_j w_j (l_kj - l_ij)^2 at [k, i]; shape=(C, C).
    counts: sum_j w_j, sum_j w_j^2 and N; shape=(3,).
  """

  losses: jax.Array
  gains: jax.Array
  squares: jax.Array
  counts: jax.Array


class SelectionState(NamedTuple):
  """State for `select`.

  Attributes:
    chosen: index of the latest choice, -1 if there is none; shape=(),
      dtype=int32.
    probe: number of the latest probe; shape=(), dtype=int32.
    before: sums over the probes before the latest one, discounted.
    latest: sums over the latest probe.
  """

  chosen: jax.Array
  probe: jax.Array
  before: Sums
  latest: Sums


def init_selection(candidates: int) -> SelectionState:
  """Make the state that has chosen nothing yet.

  Args:
    candidates: their number, in [1, inf).
  """
  trees.check_integer('candidates', candidates, 1)

  def zeros() -> Sums:
    dtype, square = trees.coefficient_dtype(), (candidates, candidates)
    return Sums(
      jnp.zeros(candidates, dtype),
      jnp.zeros(square, dtype),
      jnp.zeros(square, dtype),
      jnp.zeros(3, dtype),
    )

  def none() -> jax.Array:
    return jnp.full([], -1, jnp.int32)

  return SelectionState(none(), none(), zeros(), zeros())


def select(
  losses: Any,
  state: SelectionState,
  probe: jax.typing.ArrayLike,
  memory: float = 0.75,
  valid: Any = None,
  num_elements: jax.typing.ArrayLike | None = None,
) -> SelectionState:
  """Choose one of several candidates by their losses on one probe.

  Args:
    losses: loss of each candidate on each example, summed over the example's
      elements; an array or lists, shape=(candidates, examples).
    state: of the previous choice; at first `init_selection(candidates)`.
    probe: number of the examples: the same examples count once.
    memory: weight of the previous probe's examples, in [0, 1).
    valid: which examples count; shape=(examples,). None: all.
    num_elements: valid elements of the examples. None: one each.

  Returns:
    The next state; its `chosen` is the index of the choice, or -1.

  Raises:
    ValueError: for losses whose shape does not match the state's, a `valid`
      whose shape does not match the losses', and more than one `num_elements`.

  Examples:
    >>> import jax.numpy as jnp
    >>> from weightavg.jax import init_selection, select
    >>> losses = jnp.array([[1.0, 1.0, 1.0, 1.0], [1.0, 0.9, 0.8, 0.9]])
    >>> int(select(losses, init_selection(2), probe=0).chosen)
    1
  """
  trees.check_number('memory', memory, 0.0, 1.0)
  losses = jnp.asarray(losses)
  candidates = state.latest.losses.shape[0]
  if losses.ndim != 2 or losses.shape[0] != candidates:
    raise ValueError(
      f'Invalid losses of shape {losses.shape}. Must be ({candidates}, '
      'examples).'
    )
  if valid is None:
    valid = jnp.ones(losses.shape[1], bool)
  valid = jnp.asarray(valid, bool)
  if valid.shape != losses.shape[1:]:
    raise ValueError(
      f'Invalid valid of shape {valid.shape}. Must be {losses.shape[1:]}.'
    )
  if num_elements is None:
    num_elements = valid.sum()
  num_elements = jnp.asarray(num_elements)
  if num_elements.shape:
    raise ValueError(
      f'Invalid num_elements of shape {num_elements.shape}. Must be ().'
    )
  return _select(losses, state, probe, memory, valid, num_elements)


@jax.jit
def _select(
  losses: jax.Array,
  state: SelectionState,
  probe: jax.typing.ArrayLike,
  memory: jax.typing.ArrayLike,
  valid: jax.Array,
  num_elements: jax.typing.ArrayLike,
) -> SelectionState:
  current = _sums(losses, valid, num_elements)
  is_new = jnp.asarray(probe, jnp.int32) != state.probe
  before = jax.tree.map(
    lambda new, old: jnp.where(is_new, new, old),
    _discounted(state.before, state.latest, memory),
    state.before,
  )
  chosen = _choose(jax.tree.map(jnp.add, before, current), state.chosen)
  return SelectionState(chosen, jnp.asarray(probe, jnp.int32), before, current)


def mean_losses(sums: Sums) -> jax.Array:
  """Mean loss of each candidate per valid element; shape=(C,)."""
  return sums.losses / jnp.maximum(sums.counts[2], 1.0)


def _sums(
  losses: jax.Array, valid: jax.Array, num_elements: jax.typing.ArrayLike
) -> Sums:
  dtype = trees.coefficient_dtype()
  losses = jnp.where(valid, losses.astype(dtype), 0.0)
  gains = losses[:, None] - losses
  examples = valid.sum(dtype=dtype)
  return Sums(
    losses.sum(1),
    gains.sum(2),
    (gains * gains).sum(2),
    jnp.stack([examples, examples, jnp.asarray(num_elements, dtype)]),
  )


def _discounted(
  before: Sums, latest: Sums, memory: jax.typing.ArrayLike
) -> Sums:
  """Forget everything where a loss was not finite."""
  keep = jnp.all(jnp.isfinite(latest.losses))

  def discount(old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where(keep, memory * (old + new), 0.0)

  sums = jax.tree.map(discount, before, latest)
  # The second count is one of squared weights.
  counts = sums.counts.at[1].multiply(memory)
  return sums._replace(counts=counts)


def _choose(sums: Sums, previous: jax.Array) -> jax.Array:
  finite = jnp.isfinite(sums.losses)
  means = jnp.where(finite, mean_losses(sums), jnp.inf)
  row = jnp.maximum(previous, 0)
  is_known = (previous >= 0) & finite[row]
  error = _standard_errors(sums, row)
  gain = sums.gains[row] / jnp.maximum(sums.counts[2], 1.0)
  better = finite & (gain > error)
  lowest = jnp.where(jnp.any(finite), jnp.argmin(means), -1)
  among_better = jnp.argmin(jnp.where(better, means, jnp.inf))
  kept = jnp.where(jnp.any(better), among_better, previous)
  return jnp.where(is_known, kept, lowest).astype(jnp.int32)


def _standard_errors(sums: Sums, row: jax.Array) -> jax.Array:
  """SE of the mean difference from one candidate to each; shape=(C,).

  Infinite with fewer than two examples.
  """
  weight, weight_of_squares, elements = sums.counts
  # As many examples of equal weight would have the same error.
  equivalent = weight * weight / jnp.maximum(weight_of_squares, 1.0)
  per_example = jnp.maximum(weight, 1.0)
  gain = sums.gains[row] / per_example
  # Rounding may leave a constant difference with a variance below zero.
  variance = jnp.maximum(sums.squares[row] / per_example - gain * gain, 0.0)
  variance *= equivalent / jnp.maximum(equivalent - 1.0, 1e-30)
  error = jnp.sqrt(variance * weight_of_squares) / jnp.maximum(elements, 1.0)
  return jnp.where(equivalent <= 1.0, jnp.inf, error)
