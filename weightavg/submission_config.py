"""The configuration of a submission: a point of a search space, checked once.

A point is split over frozen dataclasses, one for each part of the algorithm.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from weightavg import averaging_config
from weightavg.averaging_config import AveragingConfig
from weightavg.config_fields import (
  check_fields,
  config_field,
  fields_by_key,
  is_integer,
  read_fields,
)
from weightavg.optimizers import Optimizer
from weightavg.schemes import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
  """The budget and the learning rate along it."""

  warmup_factor: float = config_field(
    0.0, float, '[0, 1)', 'linear warm-up, fraction of the schedule'
  )
  warmup_steps: int | None = config_field(
    None, int, '[1, inf)', 'linear warm-up, in steps'
  )
  schedule: str = config_field(
    'cosine',
    str,
    ('cosine', 'cosine_to_half', 'constant'),
    'learning rate after the warm-up',
  )
  schedule_factor: float = config_field(
    1.0, float, '(0, 1]', 'length of the schedule, fraction of T'
  )
  step_hint_factor: float = config_field(
    1.0, float, '(0, inf)', 'T as a multiple of the step hint'
  )
  planned_by: str = config_field(
    'steps',
    str,
    ('steps', 'clock'),
    'clock: T is at most that, and fits into the time limit',
    key='budget',
  )

  def __post_init__(self) -> None:
    check_fields(self)
    if self.warmup_steps is None:
      return
    if self.warmup_factor:
      raise ValueError(
        'Contradicting warmup_factor and warmup_steps. Give one of them.'
      )
    if self.planned_by == 'clock':
      raise ValueError(
        "Contradicting warmup_steps and budget='clock'. A schedule on the "
        'clock has a warmup_factor.'
      )

  def budget(self, step_hint: int) -> int:
    """T, in steps; with `budget: clock` the largest that it can be.

    Raises:
      ValueError: the workload has no step hint.
    """
    if not is_integer(step_hint) or step_hint < 1:
      raise ValueError(
        f'Invalid step_hint={step_hint!r} of the workload. Must be an integer '
        'in [1, inf): the budget is a multiple of it.'
      )
    return max(1, round(self.step_hint_factor * step_hint))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularizationConfig:
  """Regularization by the training step, beside the optimizer's."""

  dropout_rate: float | None = config_field(
    None, float, '[0, 1)', 'handed to the model', "the workload's own"
  )
  label_smoothing: float = config_field(
    0.0, float, '[0, 1)', 'handed to the loss'
  )
  grad_clip: float | None = config_field(
    None, float, '(0, inf)', 'largest norm of the gradient'
  )

  def __post_init__(self) -> None:
    check_fields(self)

  @property
  def model_options(self) -> dict[str, float]:
    """Options of a workload's `model_fn` in a training step."""
    if self.dropout_rate is None:
      return {}
    return {'dropout_rate': self.dropout_rate}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubmissionConfig:
  """All hyperparameters of a submission."""

  optimizer: Any
  averaging: AveragingConfig
  schedule: ScheduleConfig
  regularization: RegularizationConfig

  @classmethod
  def from_point(
    cls, point: Any, optimizer: Optimizer, scheme: type[Scheme]
  ) -> 'SubmissionConfig':
    """Split a point of a search space over the parts.

    Args:
      point: a namedtuple or mapping; None (the self-tuning ruleset) means the
        optimizer's own point.
      optimizer: of the submission; its defaults hold where the point has no
        value.
      scheme: of the submission; the point may repeat its name.

    Raises:
      ValueError: for an unknown, missing, ill-typed, out-of-range or
        contradicting key.
    """
    if point is None:
      point = optimizer.self_tuning_point
    values = dict(point if isinstance(point, Mapping) else point._asdict())
    values = {**_defaults_beside(values, optimizer, scheme), **values}
    name = values.setdefault(averaging_config.SCHEME_KEY, scheme.name)
    if name != scheme.name:
      raise ValueError(
        f'Invalid averaging_scheme={name!r}. This submission averages by '
        f'{scheme.name!r}.'
      )
    keys = keys_by_part(optimizer)
    known = set().union(*keys.values())
    for key, value in values.items():
      if key not in known:
        raise ValueError(
          f'Invalid hyperparameter {key}={value!r}. Must be one of '
          f'{", ".join(sorted(known))}.'
        )
    own = {
      part: {key: value for key, value in values.items() if key in part_keys}
      for part, part_keys in keys.items()
    }
    return cls(
      optimizer=read_fields(optimizer.config, own['optimizer']),
      averaging=AveragingConfig.from_point(**own['averaging']),
      schedule=read_fields(ScheduleConfig, own['schedule']),
      regularization=read_fields(RegularizationConfig, own['regularization']),
    )


def _defaults_beside(
  values: Mapping[str, Any], optimizer: Optimizer, scheme: type[Scheme]
) -> dict[str, Any]:
  """Return the optimizer's defaults that the point's keys do not exclude."""
  exclusive = scheme.exclusive_keys()
  is_given = any(values.get(key) is not None for key in exclusive)
  return {
    key: value
    for key, value in optimizer.defaults.items()
    if not (is_given and key in exclusive)
  }


def keys_by_part(
  optimizer: Optimizer,
) -> dict[str, dict[str, dataclasses.Field]]:
  """Every key of a point, with its field, by part of the configuration."""
  return {
    'optimizer': fields_by_key(optimizer.config),
    'averaging': averaging_config.point_fields(),
    'schedule': fields_by_key(ScheduleConfig),
    'regularization': fields_by_key(RegularizationConfig),
  }
