"""Averaging schemes, one a module.

A new scheme is a module with a class that `register` decorates; a module of
this package is also named here, so that it is known without an import of its
own.
"""

from weightavg.schemes.raw import Raw  # isort: skip
from weightavg.schemes.lawa import Lawa  # isort: skip
from weightavg.schemes.ema import Ema  # isort: skip
from weightavg.schemes.polynomial import Polynomial  # isort: skip
from weightavg.schemes.schedule_free import ScheduleFree  # isort: skip
from weightavg.schemes.auto import Auto, Candidates
from weightavg.schemes.base import (
  SCHEMES,
  Recursive,
  Scheme,
  Windowed,
  register,
)

__all__ = [
  'SCHEMES',
  'Auto',
  'Candidates',
  'Ema',
  'Lawa',
  'Polynomial',
  'Raw',
  'Recursive',
  'ScheduleFree',
  'Scheme',
  'Windowed',
  'register',
]
