"""NadamW: Adam with decoupled decay and a Nesterov look-ahead."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from weightavg.jax import coefficients, trees


def nadamw(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  mask: Any | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """AlgoPerf's NAdamW.

  With u the result of `scale_by_nadam` at step t = 1, 2, ... of a parameter p,

    p <- p - learning_rate (u + weight_decay p)

  `optax.nadamw` is another algorithm: its look-ahead is debiased by
  1 - b1^(t+1) (Dozat 2016).

  Args:
    learning_rate: a number or a schedule of the step, from 0 on.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    eps: added to the denominator, in [0, inf).
    weight_decay: decoupled decay, multiplied by the learning rate, in
      [0, inf).
    mask: tree of booleans, or a function from parameters to it: which
      parameters decay.

  Returns:
    An `optax.GradientTransformationExtraArgs`.

  Raises:
    ValueError: for an argument out of range; at `init` for complex parameters.

  Examples:
    >>> import jax.numpy as jnp, optax
    >>> from weightavg.jax import nadamw
    >>> optimizer = nadamw(learning_rate=0.1)
    >>> params = jnp.array(1.0)
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(jnp.array(2.0), state, params)
    >>> round(float(params + updates), 4)  # 1 - 0.1 (1 + 0.9)
    0.81

  References:
    Choi et al., On Empirical Comparisons of Optimizers for Deep Learning, 2019,
    arXiv 1910.05446, table 1.
  """
  trees.check_number('weight_decay', weight_decay, 0.0, float('inf'))
  if not callable(learning_rate):
    trees.check_number('learning_rate', learning_rate, 0.0, float('inf'))
  return optax.chain(
    scale_by_nadam(b1, b2, eps),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )


def scale_by_nadam(
  b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
  """Rescale updates as `nadamw` does, without its learning rate and decay.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
    n = b1 m + (1 - b1) g                           (the Nesterov look-ahead)
    u = n / (1 - b1^t) / (sqrt(v) / sqrt(1 - b2^t) + eps)

  Moments and the result are float32 for parameters of lower precision, of the
  parameter's dtype otherwise: `optax.apply_updates` rounds once. With the
  number 0 as b1 there is no m, and the state holds an empty tuple in its place.

  Args:
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    eps: added to the denominator, in [0, inf).

  Returns:
    An `optax.GradientTransformation` with the state `optax.ScaleByAdamState`.

  Examples:
    >>> import jax.numpy as jnp
    >>> from weightavg.jax import scale_by_nadam
    >>> transformation = scale_by_nadam(b1=0.5)
    >>> state = transformation.init(jnp.array(0.0))
    >>> update, state = transformation.update(jnp.array(-3.0), state)
    >>> round(float(update), 4)  # (0.5 * 1.5 + 0.5 * 3) / 0.5 / 3
    -1.5
  """
  trees.check_number('b1', b1, 0.0, 1.0)
  trees.check_number('b2', b2, 0.0, 1.0)
  trees.check_number('eps', eps, 0.0, float('inf'))
  keeps_first = not (isinstance(b1, int | float) and b1 == 0.0)

  def init_fn(params: optax.Params) -> optax.ScaleByAdamState:
    trees.check_arrays(params, 'scale_by_nadam')
    _check_real(params)

    def zeros(leaf: Any) -> jax.Array:
      dtype = trees.average_dtype(jnp.result_type(leaf))
      return jnp.zeros_like(leaf, dtype=dtype)

    return optax.ScaleByAdamState(
      jnp.zeros([], jnp.int32),
      jax.tree.map(zeros, params) if keeps_first else (),
      jax.tree.map(zeros, params),
    )

  def update_fn(
    updates: optax.Updates,
    state: optax.ScaleByAdamState,
    params: optax.Params | None = None,
  ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
    del params
    count = state.count + 1
    gradients = jax.tree.map(
      lambda g, v: jnp.asarray(g, v.dtype), updates, state.nu
    )
    mu = _moment(gradients, state.mu, b1) if keeps_first else ()
    nu = _moment(jax.tree.map(lambda g: g * g, gradients), state.nu, b2)
    ahead = _moment(gradients, mu, b1) if keeps_first else gradients

    def scale(n: jax.Array, v: jax.Array) -> jax.Array:
      t = count.astype(n.dtype)
      first = coefficients.one_minus_power(b1, t)
      second = coefficients.one_minus_power(b2, t)
      return n / first / (jnp.sqrt(v) / jnp.sqrt(second) + eps)

    scaled = jax.tree.map(scale, ahead, nu)
    return scaled, optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformation(init_fn, update_fn)


def _check_real(params: optax.Params) -> None:
  """Raise ValueError for the first complex leaf: its square is no variance."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating):
      where = jax.tree_util.keystr(path)
      raise ValueError(
        f'Invalid params{where} of dtype {dtype}. nadamw takes real arrays.'
      )


def _moment(
  values: optax.Params, moments: optax.Params, decay: float
) -> optax.Params:
  return jax.tree.map(
    lambda x, m: decay * m + (1.0 - decay) * x, values, moments
  )
