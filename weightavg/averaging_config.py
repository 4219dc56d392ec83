"""The averaging part of a point of a search space, checked once.

Fractions are of the training budget T, in steps.

>>> config = AveragingConfig.from_point(averaging_scheme='ema')
>>> config.resolve(budget=10_000)
(Sampling(every=20, start=0), Ema(decay=0.8))
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import logging

from weightavg.config_fields import (
  check_fields,
  check_steps,
  check_value,
  config_field,
  fields_by_key,
  is_integer,
  plain,
)
from weightavg.interpolation_checks import (
  DEFAULT_REFRESH_EVERY,
  batch_norm_of,
  check_interpolation,
  check_refresh,
)
from weightavg.sampling import Sampling
from weightavg.schemes import SCHEMES, Auto, Raw, Scheme
from weightavg.schemes.base import DEFAULT_EVERY

SCHEME_KEY = 'averaging_scheme'

# The one key that is read before a scheme is known.
_SCHEME_FIELD = config_field(
  Raw.name, str, tuple(SCHEMES), 'which average evaluation sees'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AveragingConfig:
  """The average that is kept, its cadence and its placement."""

  scheme: Scheme = dataclasses.field(default_factory=Raw)
  averaging_every: float | None = config_field(
    None, float, '(0, 1]', 'between two samples, fraction of T', DEFAULT_EVERY
  )
  averaging_every_steps: int | None = config_field(
    None, int, '[1, inf)', 'between two samples, in steps'
  )
  averaging_start: float = config_field(
    0.0, float, '[0, 1)', 'fraction of T before which nothing is sampled'
  )
  averaging_interpolation: float | None = config_field(
    None,
    float,
    '[0, 1)',
    'mu: gradients are taken at mu x + (1 - mu) z, between the average x and '
    "the optimizer's iterate z",
    '0; 0.9 for schedule_free',
  )
  averaging_batch_norm: str | None = config_field(
    None,
    str,
    ('averaged', 'current', 'refreshed'),
    "BatchNorm's running statistics in evaluation: averaged like the weights, "
    "the live model's, or refreshed by forward passes at the average, with "
    'averaging_interpolation only',
    'averaged; current with averaging_interpolation',
  )
  averaging_refresh_every: int | None = config_field(
    None,
    int,
    '[1, inf)',
    'steps between two forward passes that refresh running statistics',
    DEFAULT_REFRESH_EVERY,
  )
  averaging_placement: str = config_field(
    'device',
    str,
    ('device', 'cpu', 'sharded'),
    'where the average is kept: beside the weights, in host memory, or divided '
    'over the ranks',
  )
  averaging_checkpoints: bool = config_field(
    True,
    bool,
    (True, False),
    'whether sharded averages, and the examples of auto, can be saved',
  )
  averaging_swap: str = config_field(
    'exchange', str, ('exchange', 'copy'), 'how evaluation gets the average'
  )

  def __post_init__(self) -> None:
    if not isinstance(self.scheme, Scheme):
      raise ValueError(
        f'Invalid scheme={self.scheme!r}. Must be a scheme such as '
        'Ema(decay=0.999); AveragingConfig.from_point takes names.'
      )
    check_fields(self)
    self._check_effect()
    self._check_cadence()
    check_interpolation(
      self.scheme,
      self.interpolation,
      self.averaging_placement,
      'averaging_interpolation',
      'averaging_placement',
    )
    check_refresh(
      self.batch_norm,
      self.averaging_refresh_every,
      self.interpolation,
      'averaging_',
    )

  @property
  def interpolation(self) -> float:
    """mu, the scheme's own where the point gives none."""
    if self.averaging_interpolation is None:
      return self.scheme.default_interpolation
    return self.averaging_interpolation

  @property
  def batch_norm(self) -> str:
    """Which running statistics evaluation sees."""
    return batch_norm_of(self.averaging_batch_norm, self.interpolation)

  @classmethod
  def from_point(
    cls, averaging_scheme: str = 'none', **point: Any
  ) -> 'AveragingConfig':
    """Build the configuration from keys of a search space.

    Args:
      averaging_scheme: name of a scheme.
      **point: fields of this class, and the keys of the scheme.

    Raises:
      ValueError: naming a key that is unknown, ill-typed, out of range, without
        effect or in contradiction with another.
    """
    if not isinstance(averaging_scheme, str) or averaging_scheme not in SCHEMES:
      raise ValueError(
        f'Invalid {SCHEME_KEY}={averaging_scheme!r}. Must be one of '
        f'{", ".join(SCHEMES)}.'
      )
    scheme = SCHEMES[averaging_scheme]
    common, own = fields_by_key(cls), fields_by_key(scheme)
    for key, value in point.items():
      if key in common or key in own:
        continue
      names = _schemes_with(key)
      if not names:
        raise ValueError(
          f'Invalid hyperparameter {key}={value!r}. Must be one of '
          f'{", ".join(sorted(point_fields()))}.'
        )
      if value is not None:
        raise _without_effect(key, value, averaging_scheme, names)
    return cls(
      scheme=scheme.from_point({k: v for k, v in point.items() if k in own}),
      **{key: value for key, value in point.items() if key in common},
    )

  def _check_effect(self) -> None:
    for key, field in fields_by_key(self).items():
      value = getattr(self, field.name)
      if value != field.default and isinstance(self.scheme, Raw):
        names = [name for name in SCHEMES if name != Raw.name]
        raise _without_effect(key, value, Raw.name, names)
    if (
      not self.averaging_checkpoints
      and self.averaging_placement != 'sharded'
      and not isinstance(self.scheme, Auto)
    ):
      raise ValueError(
        'Invalid averaging_checkpoints=False. It has no effect with '
        f'averaging_placement={self.averaging_placement!r}, only with sharded, '
        "and with averaging_scheme='auto'."
      )

  def _check_cadence(self) -> None:
    cadences = {
      'averaging_every': self.averaging_every,
      'averaging_every_steps': self.averaging_every_steps,
      self.scheme.cadence_key: self.scheme.cadence_key,
    }
    given = [str(key) for key, value in cadences.items() if value is not None]
    if len(given) > 1:
      raise ValueError(
        f'Contradicting {" and ".join(given)}. Give one of them.'
      )

  def resolve(
    self, budget: int, steps_per_epoch: int | None = None
  ) -> tuple[Sampling, Scheme]:
    """Turn fractions of the budget into steps, and a horizon into samples.

    Args:
      budget: T, in steps.
      steps_per_epoch: needed by the preset 'kaddour2022' only.

    Returns:
      When to sample, and the scheme with its length in samples.
    """
    sampling = self.sampling(budget, steps_per_epoch)
    return resolve(self.scheme, sampling.every, sampling.start, budget)

  def scheme_in(
    self, budget: int, steps_per_epoch: int | None = None
  ) -> Scheme | None:
    """The scheme with its length in a budget of T steps, if that follows T.

    Where each step is a sample, as with an interpolation, the cadence does not.
    """
    if not self.interpolation:
      return None
    return self.resolve(budget, steps_per_epoch)[1]

  def sampling(
    self,
    budget: int,
    steps_per_epoch: int | None = None,
    start: int | None = None,
  ) -> Sampling:
    """The cadence in a budget of T steps.

    Args:
      budget: T.
      steps_per_epoch: needed by the preset 'kaddour2022' only.
      start: step before which nothing is sampled; None for the fraction of T.
    """
    check_steps('budget', budget)
    if steps_per_epoch is not None:
      check_steps('steps_per_epoch', steps_per_epoch)
    if self.averaging_every_steps is not None:
      every = self.averaging_every_steps
    elif self.averaging_every is not None:
      every = max(1, round(self.averaging_every * budget))
    elif self.interpolation > 0.0:
      every = 1
    else:
      every = self.scheme.default_every(budget, steps_per_epoch)
    if start is None:
      start = round(self.averaging_start * budget)
    return Sampling(every, start)


def resolve(
  scheme: Scheme,
  every: int | None,
  start: int,
  budget: int | None,
) -> tuple[Sampling, Scheme]:
  """Find the cadence, and the scheme's length in samples.

  Args:
    scheme: as configured.
    every: steps between two samples; None for the scheme's default.
    start: step before which nothing is sampled.
    budget: T, in steps; None where it is not known.

  Raises:
    ValueError: for a number out of range, a horizon without a budget, or a
      budget without a sample.
  """
  every, start, budget = plain(every), plain(start), plain(budget)
  for name, value in (
    ('every', every),
    ('total_steps', budget),
  ):
    if value is not None:
      check_steps(name, value)
  if not is_integer(start) or start < 0:
    raise ValueError(
      f'Invalid {start=}. Must be an integer in [0, inf), in steps.'
    )
  if every is None:
    every = scheme.default_every(budget, None)
  sampling = Sampling(every, start)

  def samples(fraction: float) -> int:
    if budget is None:
      raise ValueError(
        f'Missing total_steps. {scheme} has a horizon, which is a fraction of '
        'it.'
      )
    return samples_in(fraction, budget, every)

  resolved = scheme.resolved(samples)
  if (
    budget is not None
    and not isinstance(scheme, Raw)
    and not sampling.steps(budget)
  ):
    raise ValueError(
      f'Invalid cadence: a sample every {every} steps from step {start} on is '
      f'none in a budget of {budget}.'
    )
  return sampling, resolved


def samples_in(fraction: float, budget: int, every: int) -> int:
  """Samples in a fraction of the budget: max(1, round(fraction T / every))."""
  samples = max(1, round(fraction * budget / every))
  if samples == 1:
    logging.warning(
      'A horizon of %g holds one sample: that average is the last sample.',
      fraction,
    )
  return samples


def check_storage(
  batch_norm: str | None, placement: str, swap: str, checkpoints: bool
) -> None:
  """Raise ValueError for a value that the fields of the same names exclude."""
  fields = fields_by_key(AveragingConfig)
  for name, value in (
    ('batch_norm', batch_norm),
    ('placement', placement),
    ('swap', swap),
    ('checkpoints', checkpoints),
  ):
    check_value(name, fields[f'averaging_{name}'], value)


def point_fields() -> dict[str, dataclasses.Field]:
  """Every key of a point that is about averaging, with its field."""
  keys = {SCHEME_KEY: _SCHEME_FIELD, **fields_by_key(AveragingConfig)}
  for scheme in SCHEMES.values():
    keys |= fields_by_key(scheme)
  return keys


def _schemes_with(key: str) -> list[str]:
  return [
    name for name, scheme in SCHEMES.items() if key in fields_by_key(scheme)
  ]


def _without_effect(
  key: str, value: Any, scheme: str, names: Sequence[str]
) -> ValueError:
  # A search over a field without effect costs as much as one over a real one.
  return ValueError(
    f'Invalid {key}={value!r}. It has no effect with '
    f'averaging_scheme={scheme!r}, only with {" or ".join(names)}.'
  )
