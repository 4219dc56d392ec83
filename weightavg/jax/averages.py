"""The averages of a run: one, or the candidates of `auto`, fed together."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from weightavg.jax import trees
from weightavg.jax.ema import ema_weights
from weightavg.jax.evaluation import eval_params, observe
from weightavg.jax.lawa import lawa_weights
from weightavg.jax.polynomial import polynomial_weights
from weightavg.schemes import Ema, Polynomial, Raw, Scheme, Windowed


def build_averaging(
  scheme: Scheme, skip_nonfinite: bool = True
) -> optax.GradientTransformationExtraArgs:
  """Build the transformation of a scheme that samples every step.

  Args:
    scheme: with its length in samples (`Scheme.resolved`), not raw.
    skip_nonfinite: as for `ema_weights`.

  Raises:
    ValueError: for a scheme that has no transformation.
  """
  if isinstance(scheme, Windowed):
    return lawa_weights(scheme.size, skip_nonfinite=skip_nonfinite)
  if isinstance(scheme, Ema):
    assert scheme.decay is not None, 'resolved() gives the decay of a horizon'
    return ema_weights(scheme.decay, skip_nonfinite=skip_nonfinite)
  if isinstance(scheme, Polynomial):
    return polynomial_weights(scheme.power, skip_nonfinite=skip_nonfinite)
  raise ValueError(
    f'Invalid averaging_scheme={scheme.name!r}. Must be one of lawa, ema, '
    'polynomial or auto in JAX.'
  )


class AveragesState(NamedTuple):
  """State for `Averages`.

  Attributes:
    num_samples: samples in the averages; shape=(), dtype=int32.
    num_skipped: samples left out as not finite; shape=(), dtype=int32.
    parts: states of the transformations; an empty tuple for raw weights.
  """

  num_samples: jax.Array
  num_skipped: jax.Array
  parts: tuple[Any, ...]


class Averages:
  """Feeds the averages of a scheme and its candidates with one sample.

  The values may be any tree: a model's parameters and its running statistics
  in one, so that a sample holds both or none.

  Args:
    scheme: with its length in samples.
  """

  def __init__(self, scheme: Scheme) -> None:
    self.names = scheme.part_names
    # A sample is looked at once for all: the parts take what they are given.
    self._parts = [
      None if isinstance(part, Raw) else build_averaging(part, False)
      for part in scheme.parts
    ]
    self._kept = [part for part in self._parts if part is not None]

  @property
  def keeps_any(self) -> bool:
    """True if there is an average to show."""
    return bool(self._kept)

  def init(self, values: optax.Params) -> AveragesState:
    """Make the state before the first step."""
    return AveragesState(
      jnp.zeros([], jnp.int32),
      jnp.zeros([], jnp.int32),
      tuple(part.init(values) for part in self._kept),
    )

  def update(
    self,
    state: AveragesState,
    values: optax.Params,
    step: jax.Array,
    every: jax.Array,
    start: jax.Array,
  ) -> AveragesState:
    """Take the values in, if a sample is due.

    Args:
      state: of the averages.
      values: after the step.
      step: steps so far, 1 after the first.
      every: steps between two samples.
      start: step before which nothing is sampled.
    """
    if not self._kept:
      return state
    is_sampled = (step >= start) & (step % every == 0)
    # A branch, so that the other steps do not touch the averages' memory.
    return jax.lax.cond(
      is_sampled, self._sample, lambda state, _: state, state, values
    )

  def _sample(
    self, state: AveragesState, values: optax.Params
  ) -> AveragesState:
    def take(state: AveragesState, values: optax.Params) -> AveragesState:
      parts = tuple(
        observe(part, values, old)
        for part, old in zip(self._kept, state.parts, strict=True)
      )
      return state._replace(num_samples=state.num_samples + 1, parts=parts)

    def skip(state: AveragesState, _: optax.Params) -> AveragesState:
      return state._replace(num_skipped=state.num_skipped + 1)

    return jax.lax.cond(trees.all_finite(values), take, skip, state, values)

  def shown(
    self, state: AveragesState, values: optax.Params, which: int = 0
  ) -> optax.Params:
    """Return the values that evaluation sees.

    Args:
      state: of the averages.
      values: the current ones; returned themselves for raw weights.
      which: index of the candidate; -1 for the raw weights.
    """
    if which < 0 or self._parts[which] is None:
      return values
    kept = sum(part is not None for part in self._parts[:which])
    return eval_params(state.parts[kept], values)
