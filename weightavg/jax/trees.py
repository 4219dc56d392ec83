"""Leaves and trees that the averaging transformations accept."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def check_arrays(
  params: optax.Params, name: str, accumulator_dtype: Any = None
) -> None:
  """Raise ValueError for the first leaf that cannot be averaged.

  Args:
    params: arrays and numbers.
    name: of the transformation, for the message.
    accumulator_dtype: of the average; None takes the leaf's or a wider one.
  """
  is_real = accumulator_dtype is not None and not jnp.issubdtype(
    accumulator_dtype, jnp.complexfloating
  )
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    is_array = hasattr(leaf, 'shape') and hasattr(leaf, 'dtype')
    where = jax.tree_util.keystr(path)
    if not is_array and not isinstance(leaf, numbers.Number):
      raise ValueError(
        f'Invalid params{where}={leaf!r}. {name} averages arrays.'
      )
    if is_averaged(leaf) and jnp.finfo(jnp.result_type(leaf)).bits < 16:
      raise ValueError(
        f'Invalid params{where} of dtype {jnp.result_type(leaf)}. {name} takes '
        'dtypes of 16 bits or more.'
      )
    if is_real and jnp.iscomplexobj(leaf):
      raise ValueError(
        f'Invalid {accumulator_dtype=!s}. Must be complex, or None, for '
        f'params{where} of dtype {jnp.result_type(leaf)}.'
      )


def checked_dtype(accumulator_dtype: Any) -> Any:
  """The dtype of an average as JAX has it; None stays.

  Raises:
    ValueError: for a dtype that holds no averages, or that JAX would narrow.
  """
  if accumulator_dtype is None:
    return None
  try:
    dtype = jax.dtypes.canonicalize_dtype(accumulator_dtype)
  except TypeError:
    dtype = None
  if (
    dtype is None
    or not jnp.issubdtype(dtype, jnp.inexact)
    or jnp.finfo(dtype).bits < 16
  ):
    raise ValueError(
      f'Invalid {accumulator_dtype=!s}. Must be a floating-point or complex '
      'dtype of 16 bits or more.'
    )
  # Python's own types stand for JAX's widest ones, whichever these are.
  is_own = accumulator_dtype is float or accumulator_dtype is complex
  if not is_own and jnp.dtype(accumulator_dtype) != dtype:
    raise ValueError(
      f'Invalid accumulator_dtype={jnp.dtype(accumulator_dtype)}. JAX has it '
      'with jax_enable_x64 alone.'
    )
  return dtype


def checked_wide_dtype(accumulator_dtype: Any, reason: str) -> Any:
  """Return `checked_dtype`, float32 or wider.

  Args:
    accumulator_dtype: None stays.
    reason: why a narrower one will not do, for the message.

  Raises:
    ValueError: for a dtype that is too narrow.
  """
  dtype = checked_dtype(accumulator_dtype)
  if dtype is not None and average_dtype(dtype) != dtype:
    raise ValueError(
      f'Invalid accumulator_dtype={dtype}. Must be float32 or wider: {reason}.'
    )
  return dtype


def check_same_tree(
  params: optax.Params,
  average: optax.Params,
  name: str,
  leading: int = 0,
) -> None:
  """Raise ValueError where params and a stored average differ in shape.

  Args:
    params: the tree given now; a masked average skips its subtrees.
    average: the tree made by `init`.
    name: of the transformation, for the message.
    leading: axes that averaged leaves have in front of those of params.
  """
  given = _shapes(params)
  for where, leaf in _leaves(average):
    if is_masked(leaf):
      # Masked here: the subtree is the caller's, or masked as well.
      given = {k: v for k, v in given.items() if not _is_within(k, where)}
      continue
    shape = leaf.shape[leading if is_averaged(leaf) else 0 :]
    if where not in given:
      raise ValueError(
        f'Invalid params. {name} was initialised with a leaf at '
        f'params{where}, which is missing now. Initialise the state again.'
      )
    now = given.pop(where)
    if now != shape:
      raise ValueError(
        f'Invalid params{where} of shape {now}. {name} was initialised with '
        f'shape {shape}. Initialise the state again.'
      )
  for where in given:
    raise ValueError(
      f'Invalid params{where}. {name} was initialised without this leaf. '
      'Initialise the state again.'
    )
  try:
    jax.tree.map(lambda *_: None, average, params, is_leaf=is_masked)
  except ValueError:
    raise ValueError(
      f'Invalid params of type {type(params).__name__}. {name} was '
      'initialised with containers of other types. Initialise the state again.'
    ) from None


def is_masked(node: Any) -> bool:
  """True for the place of a subtree that `optax.masked` leaves out."""
  return isinstance(node, optax.MaskedNode)


def _is_within(path: str, subtree: str) -> bool:
  """True for a path at or below another one: `.w2` is not below `.w`."""
  return path.startswith(subtree) and path[len(subtree) :][:1] in '.['


def _shapes(tree: optax.Params) -> dict[str, tuple[int, ...]]:
  return {
    where: np.shape(leaf)
    for where, leaf in _leaves(tree)
    if not is_masked(leaf)
  }


def _leaves(tree: optax.Params) -> list[tuple[str, Any]]:
  """Paths and leaves, with masked subtrees as leaves."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_masked)
  return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def is_averaged(leaf: Any) -> bool:
  """Return whether a leaf is averaged; integers and random keys are copied."""
  return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def average_dtype(dtype: Any) -> Any:
  """float32, and wider only where the weights themselves are wider."""
  return jnp.promote_types(dtype, jnp.float32)


def is_narrow(leaf: Any) -> bool:
  """Return whether a leaf is averaged in a wider dtype than its own."""
  dtype = jnp.result_type(leaf)
  return is_averaged(leaf) and average_dtype(dtype) != dtype


def coefficient_dtype() -> Any:
  """float64 where jax_enable_x64 is set, float32 elsewhere."""
  return jnp.result_type(float)


def map_unmasked(
  function: Callable[..., Any], first: optax.Params, *rest: optax.Params
) -> Any:
  """Apply a function to the leaves that the first tree does not mask."""
  return jax.tree.map(
    lambda leaf, *others: leaf if is_masked(leaf) else function(leaf, *others),
    first,
    *rest,
    is_leaf=is_masked,
  )


def filled(masked: optax.Params, other: optax.Params) -> optax.Params:
  """Take what is masked from another tree."""
  return jax.tree.map(
    lambda leaf, rest: rest if is_masked(leaf) else leaf,
    masked,
    other,
    is_leaf=is_masked,
  )


def unshared(tree: Any, *others: Any) -> Any:
  """Copy arrays that occur in other trees, or twice in their own.

  Donation of all of them takes each buffer once.
  """
  seen = {id(leaf) for leaf in jax.tree.leaves(others)}

  def own(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
      return leaf
    if id(leaf) in seen:
      return jnp.array(leaf, copy=True)
    seen.add(id(leaf))
    return leaf

  return jax.tree.map(own, tree)


def map_averaged(
  function: Callable[[Any], jax.Array], tree: optax.Params
) -> optax.Params:
  """Apply a function to averaged leaves and copy the others."""

  def map_leaf(leaf: Any) -> jax.Array:
    if is_averaged(leaf):
      return function(leaf)
    return jnp.array(leaf, copy=True)

  return jax.tree.map(map_leaf, tree)


def all_finite(tree: optax.Params) -> jax.Array:
  """Return a scalar, True if every averaged leaf is finite everywhere."""
  # A sum of zeros, unless a value is not finite: one read, where isfinite
  # would write a mask first, and a product with 0 an array of zeros. A maximum
  # may lose a NaN between devices.
  finite = [
    jnp.isfinite(jnp.sum(leaf - leaf))
    for leaf in jax.tree.leaves(tree)
    if is_averaged(leaf)
  ]
  return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)


def as_stored(tree: optax.Params, stored: optax.Params) -> optax.Params:
  """Round leaves as the buffers that take them: large values become inf.

  Args:
    tree: the leaves, of which those with buffers as wide stay.
    stored: the buffers, of any shape.
  """

  def round_leaf(leaf: Any, buffer: jax.Array) -> Any:
    if not is_averaged(leaf):
      return leaf
    narrow = jnp.finfo(buffer.dtype)
    if float(narrow.max) >= float(jnp.finfo(jnp.result_type(leaf)).max):
      return leaf
    if jnp.iscomplexobj(buffer):
      return jnp.asarray(leaf).astype(buffer.dtype)
    # XLA may leave a conversion there and back out.
    return jax.lax.reduce_precision(
      jnp.asarray(leaf), narrow.nexp, narrow.nmant
    )

  return jax.tree.map(round_leaf, tree, stored)


def increment(count: jax.Array) -> jax.Array:
  """Add one; the largest integer stays."""
  return count + (count < jnp.iinfo(count.dtype).max).astype(count.dtype)


def is_number(value: Any) -> bool:
  """True for a number of Python or NumPy; False for arrays, of any shape."""
  return isinstance(value, numbers.Real)


def check_number(name: str, value: Any, low: float, high: float) -> None:
  """Raise ValueError for a number outside [low, high).

  Traced values pass: `optax.inject_hyperparams` hands them over, and arrays in
  its `init`, of the dtype of the parameters.
  """
  if isinstance(value, jax.core.Tracer):
    return
  if isinstance(value, jax.Array | np.ndarray):
    if value.shape:
      raise ValueError(f'Invalid {name} of shape {value.shape}. Must be ().')
  elif not is_number(value):
    raise ValueError(f'Invalid {name}={value!r}. Must be a number.')
  if low <= value < high:
    return
  hint = ''
  dtype = jnp.result_type(value)
  if isinstance(value, jax.Array) and average_dtype(dtype) != dtype:
    hint = (
      f' It is {dtype}: give inject_hyperparams hyperparam_dtype=jnp.float32.'
    )
  raise ValueError(
    f'Invalid {name}={value}. Must be in [{low:g}, {high:g}).{hint}'
  )


def check_integer(name: str, value: Any, low: int) -> None:
  """Raise ValueError for anything but an integer, or an integer below low."""
  is_array = isinstance(value, jax.Array)
  is_integer = isinstance(value, numbers.Integral) and not isinstance(
    value, bool
  )
  if is_array:
    is_integer = not value.shape and jnp.issubdtype(value.dtype, jnp.integer)
  # Of a traced value the dtype alone is known.
  is_traced = isinstance(value, jax.core.Tracer)
  if not is_integer or (not is_traced and value < low):
    raise ValueError(
      f'Invalid {name}={value!r}. Must be an integer in [{low}, {math.inf}).'
    )
