"""The configuration of a submission: what a point may say, checked once.

A point of a tuning search space is split over frozen dataclasses, one for each
part of the algorithm. Fractions are of the budget T, in steps:
T = step_hint * step_hint_factor.

>>> config = SubmissionConfig.from_point(
...   {'learning_rate': 1e-3, 'warmup_factor': 0.05}, 'nadamw', 'ema')
>>> config.averaging.resolve(budget=10_000)
(Sampling(every=20, start=0), Ema(decay=0.8))
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from absl import logging

from weightavg import candidates, coefficients
from weightavg.config_fields import check_knobs, knob, read_knobs
from weightavg.optimizer_config import OPTIMIZER_CONFIGS, SELF_TUNING_POINTS

AVERAGING_SCHEMES = ('none', 'lawa', 'ema', 'polynomial', 'auto')
DEFAULT_HORIZON = 0.01
DEFAULT_EVERY = 0.002
DEFAULT_POWER = 4.0
# Kaddour (2022): more than 16 epochs hurt.
_KADDOUR_WINDOW = 6
# Of T; an evaluation every 2 % of the run is about what the benchmark does.
DEFAULT_PROBE_EVERY = 0.02
# A quarter of a batch is few examples, the last few probes together are enough,
# and older ones knew other weights (lab.studies.auto).
DEFAULT_PROBE_MEMORY = 0.75

# Which knobs speak of some schemes only; the others speak of any but 'none'.
# One given in vain is an error, since a search over a knob without effect costs
# as much as one over a real knob.
_KNOBS_OF_SCHEME = {
  'averaging_horizon': ('lawa', 'ema'),
  'lawa_window': ('lawa',),
  'averaging_preset': ('lawa',),
  'ema_decay': ('ema',),
  'averaging_power': ('polynomial',),
  'averaging_candidates': ('auto',),
  'averaging_probe_examples': ('auto',),
  'averaging_probe_every': ('auto',),
  'averaging_probe_memory': ('auto',),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AveragingConfig:
  """Which average of the weights is kept, and over which horizon."""

  averaging_scheme: str = knob(
    'none', str, AVERAGING_SCHEMES, 'which average evaluation sees'
  )
  averaging_horizon: float | None = knob(
    None,
    float,
    '(0, 1]',
    'length of the average, fraction of T',
    DEFAULT_HORIZON,
  )
  averaging_every: float | None = knob(
    None, float, '(0, 1]', 'between two samples, fraction of T', DEFAULT_EVERY
  )
  averaging_every_steps: int | None = knob(
    None, int, '[1, inf)', 'between two samples, in steps'
  )
  averaging_start: float = knob(
    0.0, float, '[0, 1)', 'fraction of T before which nothing is sampled'
  )
  lawa_window: int | None = knob(
    None, int, '[1, inf)', 'samples in the LAWA window'
  )
  ema_decay: float | None = knob(None, float, '[0, 1)', 'EMA decay per sample')
  averaging_power: float | None = knob(
    None,
    float,
    '[0, inf)',
    'of the polynomial average; 0: Polyak',
    DEFAULT_POWER,
  )
  averaging_candidates: str | None = knob(
    None,
    str,
    None,
    'averages among which auto chooses',
    candidates.DEFAULT_CANDIDATES,
  )
  averaging_probe_examples: int | None = knob(
    None,
    int,
    '[2, inf)',
    'held out of training, by which auto chooses; over all ranks',
    'a quarter of a batch',
  )
  averaging_probe_every: float | None = knob(
    None,
    float,
    '(0, 1]',
    'between two renewals of these examples, fraction of T',
    DEFAULT_PROBE_EVERY,
  )
  averaging_probe_memory: float | None = knob(
    None,
    float,
    '[0, 1)',
    "weight of the last probe's examples beside this one's",
    DEFAULT_PROBE_MEMORY,
  )
  averaging_preset: str | None = knob(
    None, str, ('kaddour2022',), 'one sample per epoch, window 6'
  )
  averaging_batch_norm: str = knob(
    'averaged',
    str,
    ('averaged', 'current'),
    "BatchNorm's running statistics in evaluation: averaged like the weights, "
    "or the live model's",
  )
  averaging_placement: str = knob(
    'device',
    str,
    ('device', 'cpu', 'sharded'),
    'where the average is kept: beside the weights, in host memory, or divided '
    'over the ranks',
  )
  averaging_checkpoints: bool = knob(
    True,
    bool,
    (True, False),
    'whether sharded averages, and the examples of auto, can be saved',
  )
  averaging_swap: str = knob(
    'exchange', str, ('exchange', 'copy'), 'how evaluation gets the average'
  )

  def __post_init__(self) -> None:
    check_knobs(self)
    self._check_effect()
    if self.averaging_candidates is not None:
      candidates.parse(self.averaging_candidates)
    self._check_cadence()
    self._check_horizon()

  def _check_effect(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      schemes = _KNOBS_OF_SCHEME.get(field.name, AVERAGING_SCHEMES[1:])
      if value != field.default and self.averaging_scheme not in schemes:
        raise ValueError(
          f'Invalid {field.name}={value!r}. It has no effect with '
          f'averaging_scheme={self.averaging_scheme!r}, only with '
          f'{" or ".join(schemes)}.'
        )
    if (
      not self.averaging_checkpoints
      and self.averaging_placement != 'sharded'
      and self.averaging_scheme != 'auto'
    ):
      raise ValueError(
        'Invalid averaging_checkpoints=False. It has no effect with '
        f'averaging_placement={self.averaging_placement!r}, only with sharded, '
        "and with averaging_scheme='auto'."
      )

  def _check_cadence(self) -> None:
    given = [
      name
      for name in ('averaging_every', 'averaging_every_steps')
      if getattr(self, name) is not None
    ]
    if self.averaging_preset is not None:
      given += ['averaging_preset']
    if len(given) > 1:
      raise ValueError(
        f'Contradicting {" and ".join(given)}. Give one of them.'
      )

  def _check_horizon(self) -> None:
    """A window or decay beside a horizon must say the same."""
    explicit = 'lawa_window' if self.lawa_window else 'ema_decay'
    value = getattr(self, explicit)
    if self.averaging_preset and (self.averaging_horizon or self.lawa_window):
      name = 'lawa_window' if self.lawa_window else 'averaging_horizon'
      raise ValueError(
        f'Contradicting averaging_preset and {name}. Give one of them.'
      )
    if value is None or self.averaging_horizon is None:
      return
    if self.averaging_every_steps is not None:
      raise ValueError(
        f'Contradicting averaging_horizon and {explicit}. Give one of them.'
      )
    window = coefficients.samples_in_horizon(
      self.averaging_horizon, self.averaging_every or DEFAULT_EVERY
    )
    implied: float = window
    if explicit == 'ema_decay':
      implied = coefficients.decay_of_window(window)
    if not math.isclose(value, implied):
      raise ValueError(
        f'Contradicting averaging_horizon={self.averaging_horizon} and '
        f'{explicit}={value}. The horizon implies {explicit}={implied}.'
      )

  def resolve(
    self, budget: int, steps_per_epoch: int | None = None
  ) -> tuple[coefficients.Sampling, coefficients.Scheme | None]:
    """Turn fractions of the budget into steps, a window and a decay.

    Args:
      budget: T, in steps.
      steps_per_epoch: needed by the preset 'kaddour2022' only.

    Returns:
      When to sample, and the scheme (None for 'none').
    """
    if steps_per_epoch is not None and (
      not isinstance(steps_per_epoch, int) or steps_per_epoch < 1
    ):
      raise ValueError(
        f'Invalid steps_per_epoch={steps_per_epoch!r}. Must be an integer in '
        '[1, inf).'
      )
    if not isinstance(budget, int) or budget < 1:
      raise ValueError(
        f'Invalid budget={budget!r}. Must be an integer in [1, inf).'
      )
    every_fraction = self.averaging_every or DEFAULT_EVERY
    every = self.averaging_every_steps or max(1, round(every_fraction * budget))
    if self.averaging_preset is not None:
      if not steps_per_epoch:
        raise ValueError(
          f'Missing steps_per_epoch. averaging_preset={self.averaging_preset!r}'
          ' samples once per epoch.'
        )
      every = steps_per_epoch
    sampling = coefficients.Sampling(
      every, round(self.averaging_start * budget)
    )
    scheme = self._scheme(budget)
    if scheme is not None and not sampling.steps(budget):
      raise ValueError(
        f'Invalid cadence: a sample every {every} steps from step '
        f'{sampling.start} on is none in a budget of {budget}.'
      )
    return sampling, scheme

  def _scheme(self, budget: int) -> coefficients.Scheme | None:
    if self.averaging_scheme == 'none':
      return None
    if self.averaging_scheme == 'auto':
      return candidates.build(
        self.averaging_candidates or candidates.DEFAULT_CANDIDATES,
        lambda horizon: self._window(horizon, budget),
      )
    if self.averaging_scheme == 'polynomial':
      power = self.averaging_power
      return coefficients.Polynomial(DEFAULT_POWER if power is None else power)
    if self.ema_decay is not None:
      return coefficients.Ema(self.ema_decay)
    window = self.lawa_window
    if self.averaging_preset is not None:
      window = _KADDOUR_WINDOW
    if window is None:
      window = self._window(self.averaging_horizon or DEFAULT_HORIZON, budget)
    if self.averaging_scheme == 'lawa':
      return coefficients.Lawa(window)
    return coefficients.Ema(coefficients.decay_of_window(window))

  def _window(self, horizon: float, budget: int) -> int:
    """A horizon in samples."""
    if self.averaging_every_steps is not None:
      window = coefficients.samples_in_horizon(
        horizon * budget, self.averaging_every_steps
      )
    else:
      window = coefficients.samples_in_horizon(
        horizon, self.averaging_every or DEFAULT_EVERY
      )
    if window == 1:
      logging.warning(
        'A horizon of %g holds one sample: that average is the last sample.',
        horizon,
      )
    return window

  @property
  def probe_memory(self) -> float:
    """How much the examples of the last probe count."""
    if self.averaging_probe_memory is None:
      return DEFAULT_PROBE_MEMORY
    return self.averaging_probe_memory

  def probe_every_steps(self, budget: int) -> int:
    """Steps between two renewals of the examples by which auto chooses."""
    fraction = self.averaging_probe_every or DEFAULT_PROBE_EVERY
    return max(1, round(fraction * budget))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
  """The budget and the learning rate along it."""

  warmup_factor: float = knob(
    0.0, float, '[0, 1)', 'linear warm-up, fraction of the schedule'
  )
  schedule: str = knob(
    'cosine',
    str,
    ('cosine', 'cosine_to_half', 'constant'),
    'learning rate after the warm-up',
  )
  schedule_factor: float = knob(
    1.0, float, '(0, 1]', 'length of the schedule, fraction of T'
  )
  step_hint_factor: float = knob(
    1.0, float, '(0, inf)', 'T as a multiple of the step hint'
  )

  def __post_init__(self) -> None:
    check_knobs(self)

  def budget(self, step_hint: int) -> int:
    """T, in steps."""
    return max(1, round(self.step_hint_factor * step_hint))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularizationConfig:
  """What the training step does beside the optimizer."""

  dropout_rate: float = knob(0.0, float, '[0, 1)', 'handed to the model')
  label_smoothing: float = knob(0.0, float, '[0, 1)', 'handed to the loss')
  grad_clip: float | None = knob(
    None, float, '(0, inf)', 'largest norm of the gradient'
  )

  def __post_init__(self) -> None:
    check_knobs(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubmissionConfig:
  """Everything that a submission is told."""

  optimizer: Any
  averaging: AveragingConfig
  schedule: ScheduleConfig
  regularization: RegularizationConfig

  @classmethod
  def from_point(
    cls, point: Any, optimizer: str, averaging_scheme: str
  ) -> 'SubmissionConfig':
    """Split a point of a search space over the parts.

    Args:
      point: a namedtuple or mapping; None (the self-tuning ruleset) stands for
        the optimizer's own point.
      optimizer: a key of OPTIMIZER_CONFIGS.
      averaging_scheme: the submission's scheme; the point may repeat it.

    Raises:
      ValueError: for an unknown, missing, ill-typed, out-of-range or
        contradicting key.
    """
    if point is None:
      point = SELF_TUNING_POINTS[optimizer]
    values = dict(point if isinstance(point, Mapping) else point._asdict())
    scheme = values.setdefault('averaging_scheme', averaging_scheme)
    if scheme != averaging_scheme:
      raise ValueError(
        f'Invalid averaging_scheme={scheme!r}. This submission averages by '
        f'{averaging_scheme!r}.'
      )
    parts = {
      'optimizer': OPTIMIZER_CONFIGS[optimizer],
      'averaging': AveragingConfig,
      'schedule': ScheduleConfig,
      'regularization': RegularizationConfig,
    }
    names = {
      part: {field.name for field in dataclasses.fields(config_class)}
      for part, config_class in parts.items()
    }
    known = set().union(*names.values())
    for key, value in values.items():
      if key not in known:
        raise ValueError(
          f'Invalid hyperparameter {key}={value!r}. Must be one of '
          f'{", ".join(sorted(known))}.'
        )
    return cls(
      **{
        part: read_knobs(
          config_class,
          {k: v for k, v in values.items() if k in names[part]},
        )
        for part, config_class in parts.items()
      }
    )
