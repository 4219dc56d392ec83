"""Coefficients c_k of the averages a_k = a_{k-1} + c_k (x_k - a_{k-1})."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weightavg.interpolation_checks import check_interpolation
from weightavg.jax import trees
from weightavg.schemes import Ema, Polynomial, ScheduleFree, Scheme

# Maps the number of a sample, 1, 2, ..., a floating-point scalar, to c in
# [0, 1], with c_1 = 1.
Coefficient = Callable[[jax.Array], jax.Array]


def one_minus_power(base: Any, exponent: jax.Array) -> jax.Array:
  """Return 1 - base^exponent; expm1 keeps bases near 1 exact.

  Args:
    base: a number or a scalar, in [0, 1).
    exponent: 1, 2, ..., a floating-point scalar.
  """
  log_base: Any
  if isinstance(base, int | float):
    log_base = math.log(base) if base else -math.inf
  else:
    log_base = jnp.log(jnp.asarray(base, exponent.dtype))
  # A base of 0 gives expm1(-inf) = -1.
  return -jnp.expm1(exponent * log_base)


def of_ema(decay: Any, number: jax.Array) -> jax.Array:
  """Return (1 - decay) / (1 - decay^k), with which the k-th sample enters.

  Args:
    decay: a number or a scalar, in [0, 1).
    number: k, 1, 2, ..., a floating-point scalar.
  """
  weight = (1.0 - decay) / one_minus_power(decay, number)
  # The first sample replaces what was there, whatever the power rounds to.
  return jnp.where(number == 1.0, 1.0, weight)


def of_share(share: jax.Array, number: jax.Array) -> jax.Array:
  """Return `of_ema` for a decay 1 - share, traced, also where it is near 1.

  Args:
    share: in (0, 1]; of a horizon of N samples 1 / N.
    number: as for `of_ema`.
  """
  weight = share / -jnp.expm1(number * jnp.log1p(-share))
  return jnp.where(number == 1.0, 1.0, weight)


def of_polynomial(power: Any, number: jax.Array) -> jax.Array:
  """Return (gamma + 1) / (gamma + k), with which the k-th sample enters.

  Args:
    power: gamma, a number or a scalar, in [0, inf).
    number: k, 1, 2, ..., a floating-point scalar.
  """
  gamma = jnp.asarray(power, number.dtype)
  return jnp.minimum(1.0, (gamma + 1.0) / (gamma + number))


def of_scheme(scheme: Any) -> Coefficient:
  """c of a scheme whose coefficients depend on the number of samples alone.

  Raises:
    ValueError: for a horizon, and for a scheme that JAX does not have.
  """
  if isinstance(scheme, Ema):
    decay = scheme.decay
    if decay is None:
      raise ValueError(
        f'Missing decay. {scheme} has a horizon, a fraction of a budget that '
        'an optimizer does not know: give decay = 1 - 1 / (steps in it).'
      )
    return lambda number: of_ema(decay, number)
  if isinstance(scheme, Polynomial):
    power = scheme.power
    return lambda number: of_polynomial(power, number)
  if isinstance(scheme, Scheme):
    raise ValueError(
      f'Invalid scheme={scheme}. Must be Ema, Polynomial or ScheduleFree in '
      'JAX; a function from the number of a sample to c stands for any other.'
    )
  return scheme


def _check_array(interpolation: Any) -> None:
  # At 0, x cannot be computed from y and z.
  array = np.asarray(interpolation)
  is_number = array.shape == () and array.dtype.kind in 'fiuV'
  if not is_number or not 0.0 < float(array) < 1.0:
    raise ValueError(
      f'Invalid interpolation={interpolation!r}. Must be in (0, 1) as an '
      'array, or the number 0.'
    )


def check(
  scheme: Scheme | Coefficient, interpolation: Any, learning_rate: Any
) -> None:
  """Raise ValueError for arguments of `primal_average` that do not fit.

  Args:
    scheme: of the average, or a function.
    interpolation: mu; an array must be in (0, 1), which is not checked inside
      jit.
    learning_rate: for `ScheduleFree` only; a number, in [0, inf), or a
      schedule.
  """
  given = trees.is_number(interpolation)
  if not given and not isinstance(interpolation, jax.core.Tracer):
    _check_array(interpolation)
  if not isinstance(scheme, Scheme):
    if not callable(scheme) or isinstance(scheme, type):
      raise ValueError(
        f'Invalid scheme={scheme!r}. Must be Ema, Polynomial, ScheduleFree or '
        'a function from the number of a sample to its coefficient.'
      )
    if given and not 0.0 < interpolation < 1.0:
      raise ValueError(
        f'Invalid interpolation={interpolation!r}. Must be in (0, 1) with a '
        'function.'
      )
  else:
    check_interpolation(
      scheme, float(interpolation) if given else 0.5, 'device'
    )
    if not isinstance(scheme, ScheduleFree):
      of_scheme(scheme)
  if learning_rate is not None and not isinstance(scheme, ScheduleFree):
    raise ValueError(
      'Invalid learning_rate. It has no effect without ScheduleFree: the base '
      'optimizer has its own.'
    )
  if learning_rate is not None and not callable(learning_rate):
    trees.check_number('learning_rate', learning_rate, 0.0, math.inf)
