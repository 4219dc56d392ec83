"""The averager as a callback of other libraries, each of them optional."""

from collections.abc import Mapping
from typing import Any

from weightavg.schemes import Scheme


def check_options(scheme: Scheme, options: Mapping[str, Any]) -> None:
  """Refuse an interpolation, for which a callback comes too late.

  Args:
    scheme: of the average.
    options: arguments of `Averager`.

  Raises:
    ValueError: the average is to take part in training, or there is no scheme.
  """
  if not isinstance(scheme, Scheme):
    raise ValueError(
      f'Invalid scheme={scheme!r}. Must be a scheme such as Ema(0.999).'
    )
  interpolation = options.get('interpolation')
  if interpolation is None:
    interpolation = scheme.default_interpolation
  if interpolation:
    raise ValueError(
      f'Invalid interpolation={interpolation}. Must be 0 in a callback: the '
      'library calls the optimizer with a closure, which would take gradients '
      'at z.'
    )
