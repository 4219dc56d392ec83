"""Weight averaging along a training run: LAWA, EMA and polynomial averages."""

from weightavg.averaging_config import AveragingConfig
from weightavg.schemes import Auto, Ema, Lawa, Polynomial, ScheduleFree

__version__ = '0.1.0'
__all__ = [
  'Auto',
  'AveragingConfig',
  'Ema',
  'Lawa',
  'Polynomial',
  'ScheduleFree',
]
