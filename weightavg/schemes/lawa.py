"""Latest-weight averaging: the mean of the last samples."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

from weightavg.config_fields import config_field
from weightavg.schemes.base import (
  DEFAULT_HORIZON,
  Scheme,
  Windowed,
  register,
)

# Kaddour (2022) samples once per epoch; more than 16 epochs hurt.
_KADDOUR_WINDOW = 6


@register
@dataclasses.dataclass(frozen=True, repr=False)
class Lawa(Windowed):
  """Latest-weight averaging (Kaddour 2022, arXiv 2209.14981).

    a_k = (x_{k-L+1} + ... + x_k) / L

  Trained are the model's own weights; stored are the last L samples; evaluated
  is their mean, over those that are there before L are.

  Args:
    window: L, number of samples, at least 1.
    horizon: instead of `window`, as a fraction of the training budget in
      (0, 1]; 0.01 if nothing is given.
    preset: 'kaddour2022', one sample per epoch and a window of 6.

  >>> Lawa(window=2).weights(3)
  [0.0, 0.5, 0.5]
  """

  name: ClassVar[str] = 'lawa'
  candidate: ClassVar[str | None] = 'lawa'
  argument: ClassVar[str | None] = 'horizon'
  exclusive: ClassVar[tuple[str, ...]] = ('horizon', 'window', 'preset')

  window: int | None = config_field(
    None, int, '[1, inf)', 'samples in the LAWA window', key='lawa_window'
  )
  horizon: float | None = config_field(
    None,
    float,
    '(0, 1]',
    'length of the average, fraction of T',
    DEFAULT_HORIZON,
    key='averaging_horizon',
  )
  preset: str | None = config_field(
    None,
    str,
    ('kaddour2022',),
    'one sample per epoch, window 6',
    key='averaging_preset',
  )

  @property
  def cadence_key(self) -> str | None:
    """The preset samples once per epoch."""
    return None if self.preset is None else 'averaging_preset'

  def default_every(
    self, budget: int | None, steps_per_epoch: int | None
  ) -> int:
    """One epoch for the preset.

    Raises:
      ValueError: it cannot be told: consecutive steps are all alike, so that a
        window of them would be no average.
    """
    if self.preset is not None:
      if not steps_per_epoch:
        raise ValueError(
          f'Missing steps_per_epoch. averaging_preset={self.preset!r} samples '
          'once per epoch.'
        )
      return steps_per_epoch
    if budget is None:
      raise ValueError(
        f'Missing every. {self} averages samples that are some steps apart; '
        'give every, or total_steps for a sample each 0.2 % of it.'
      )
    return super().default_every(budget, steps_per_epoch)

  def resolved(self, samples_in: Callable[[float], int]) -> Scheme:
    """With the window of the horizon or the preset."""
    if self.preset is not None:
      return Lawa(window=_KADDOUR_WINDOW)
    if self.window is not None:
      return self
    return Lawa(window=samples_in(self.horizon or DEFAULT_HORIZON))

  @property
  def size(self) -> int:
    """L."""
    assert self.window is not None, 'resolved() gives the window of a horizon'
    return self.window
