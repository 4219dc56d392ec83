"""NadamW from its configuration."""

import dataclasses

import jax
import optax

from weightavg.jax.nadamw import nadamw
from weightavg.optimizers import Optimizer, primal
from weightavg.optimizers.nadamw import SELF_TUNING_POINT, NadamWConfig


def build_nadamw(
  learning_rate: jax.typing.ArrayLike, config: NadamWConfig
) -> optax.GradientTransformation:
  """NadamW at a learning rate, which may be traced.

  Raises:
    ValueError: for a field that has no effect in JAX.
  """
  if config.fused is not None:
    raise ValueError(
      f'Invalid fused={config.fused!r}. It has no effect in JAX.'
    )
  return nadamw(
    learning_rate,
    b1=1.0 - config.one_minus_beta1,
    b2=config.beta2,
    eps=config.epsilon,
    weight_decay=config.weight_decay,
  )


NADAMW = Optimizer(
  name='nadamw',
  config=NadamWConfig,
  build=build_nadamw,
  self_tuning_point=SELF_TUNING_POINT,
)

# In submissions that train at an average.
NADAMW_PRIMAL = dataclasses.replace(
  NADAMW,
  self_tuning_point=primal.NADAMW_POINT,
  defaults=primal.PRIMAL_DEFAULTS,
)
NADAMW_SCHEDULE_FREE = dataclasses.replace(
  NADAMW,
  self_tuning_point=primal.SCHEDULE_FREE_POINT,
  defaults=primal.SCHEDULE_FREE_DEFAULTS,
)
