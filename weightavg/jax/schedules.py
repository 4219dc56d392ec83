"""Learning-rate schedules as optax schedules, equal to PyTorch's half."""

import jax
import jax.numpy as jnp
import optax

from weightavg.jax import trees

# The baselines' start of the warm-up: not zero, so that no step is lost.
_WARMUP_START = 1e-10
_SCHEDULES = ('cosine', 'cosine_to_half', 'constant')


def warmup_schedule(
  peak_value: float,
  decay_steps: int,
  warmup_factor: float = 0.0,
  schedule: str = 'cosine',
) -> optax.Schedule:
  """Linear warm-up, then a cosine or a constant.

  For S = `decay_steps` of which W = int(warmup_factor S) warm up, the learning
  rate before step s = 0, 1, ... is `peak_value` times

    s < W:  1e-10 + (1 - 1e-10) s / W
    s >= W: with y = max(0, S - s) / max(S - W, 1),
      cosine          sin(pi y / 2)^2
      cosine_to_half  (1 + sin(pi y / 2)^2) / 2
      constant        1

  After S steps it stays at its end.

  Args:
    peak_value: learning rate at the end of the warm-up, in [0, inf); it may be
      traced.
    decay_steps: S, in [1, inf).
    warmup_factor: fraction of S, in [0, 1).
    schedule: 'cosine', 'cosine_to_half' or 'constant'.

  Returns:
    A function from a step, traced or not, to a scalar.

  Raises:
    ValueError: for an argument out of range.

  Examples:
    >>> from weightavg.jax import warmup_schedule
    >>> rate = warmup_schedule(1.0, decay_steps=8, warmup_factor=0.25)
    >>> [round(float(rate(s)), 3) for s in (0, 1, 2, 5, 8, 9)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
  """
  trees.check_number('peak_value', peak_value, 0.0, float('inf'))
  for name, value in (
    ('decay_steps', decay_steps),
    ('warmup_factor', warmup_factor),
  ):
    if isinstance(value, jax.core.Tracer):
      raise ValueError(
        f'Invalid {name}: traced. Must be a number when the schedule is made.'
      )
  trees.check_integer('decay_steps', decay_steps, 1)
  trees.check_number('warmup_factor', warmup_factor, 0.0, 1.0)
  if schedule not in _SCHEDULES:
    raise ValueError(
      f'Invalid schedule={schedule!r}. Must be one of {", ".join(_SCHEDULES)}.'
    )
  warmup_steps = int(warmup_factor * decay_steps)

  def schedule_fn(count: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.asarray(count)
    dtype = trees.coefficient_dtype()
    warmup = _WARMUP_START + (1.0 - _WARMUP_START) * step.astype(dtype) / max(
      warmup_steps, 1
    )
    # From the steps that remain, an integer: cos would lose the last digits of
    # the small learning rates at the end.
    remaining = jnp.maximum(decay_steps - step, 0).astype(dtype)
    remaining = remaining / max(decay_steps - warmup_steps, 1)
    cosine = jnp.sin(0.5 * jnp.pi * remaining) ** 2
    decay = {
      'cosine': cosine,
      'cosine_to_half': 0.5 * (1.0 + cosine),
      'constant': jnp.ones_like(cosine),
    }[schedule]
    return peak_value * jnp.where(step < warmup_steps, warmup, decay)

  return schedule_fn
