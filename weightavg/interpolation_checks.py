"""Settings of averages at which training takes place, checked.

Gradients are taken at y = mu x + (1 - mu) z, between the average x and the
optimizer's iterate z. mu is the interpolation.
"""

from weightavg.config_fields import check_steps, plain
from weightavg.schemes import SCHEMES, Auto, Recursive, Scheme

# A forward pass is a third of a training step.
DEFAULT_REFRESH_EVERY = 10
# Above it the momentum of the optimizer is to be off.
_MOST_WITH_MOMENTUM = 0.5


def check_interpolation(
  scheme: Scheme,
  interpolation: float,
  placement: str,
  name: str = 'interpolation',
  placement_name: str = 'placement',
) -> None:
  """Raise ValueError where no average x and iterate z can be kept.

  Args:
    scheme: of x.
    interpolation: mu.
    placement: where x and z are to be kept.
    name: of the argument, for the message.
    placement_name: likewise.
  """
  interpolation = plain(interpolation)
  is_number = isinstance(interpolation, int | float)
  is_number &= not isinstance(interpolation, bool)
  if not is_number or not 0 <= interpolation < 1:
    raise ValueError(f'Invalid {name}={interpolation!r}. Must be in [0, 1).')
  if interpolation == 0.0:
    if scheme.default_interpolation > 0.0:
      raise ValueError(
        f'Invalid {name}=0.0. Must be in (0, 1) for {scheme.name}; without '
        'interpolation polynomial is the average of that kind.'
      )
    candidates = scheme.schemes if isinstance(scheme, Auto) else ()
    for candidate in candidates:
      if candidate.default_interpolation > 0.0:
        raise ValueError(
          f'Invalid averaging_candidates. {candidate} needs an {name}, without '
          'which polynomial is the average of that kind.'
        )
    return
  if not isinstance(scheme, Recursive):
    names = [key for key, one in SCHEMES.items() if issubclass(one, Recursive)]
    raise ValueError(
      f'Invalid {name}={interpolation}. Training at an average needs one that '
      f'is updated from its last value, {" or ".join(names)}; {scheme.name} is '
      'not.'
    )
  if placement != 'device':
    raise ValueError(
      f'Invalid {placement_name}={placement!r}. Must be device with {name}='
      f'{interpolation}: each step reads and writes the whole of x and z on '
      'each rank. Parameters that are DTensors (FSDP2) divide them.'
    )


def momentum_warning(
  interpolation: float, optimizer: str, momentum: float
) -> str | None:
  """Return a warning where the gradient's memory is there twice, or None."""
  if interpolation <= _MOST_WITH_MOMENTUM or not momentum > 0.0:
    return None
  return (
    f'Training at y with an interpolation of {interpolation:g} is a momentum '
    f'already, and {optimizer} has another one of {momentum:g}. Set its beta1 '
    '(or momentum) to 0; in a point, one_minus_beta1 to 1.'
  )


def batch_norm_of(batch_norm: str | None, interpolation: float) -> str:
  """Return the given choice, or the default at an interpolation.

  Averaged statistics are older than the weights x that they are used with.
  """
  return batch_norm or ('current' if interpolation else 'averaged')


def check_refresh(
  batch_norm: str, every: int | None, interpolation: float, prefix: str = ''
) -> None:
  """Raise ValueError for a setting of BatchNorm that has no effect.

  Args:
    batch_norm: 'averaged', 'current' or 'refreshed'.
    every: steps between two refreshes; None for the default.
    interpolation: mu.
    prefix: of the arguments' names.
  """
  if every is not None:
    check_steps(f'{prefix}refresh_every', every)
    if batch_norm != 'refreshed':
      raise ValueError(
        f'Invalid {prefix}refresh_every={every}. It has no effect with '
        f'{prefix}batch_norm={batch_norm!r}, only with refreshed.'
      )
  if batch_norm == 'refreshed' and not interpolation:
    raise ValueError(
      f"Invalid {prefix}batch_norm='refreshed'. Must be averaged or current "
      f'without {prefix}interpolation.'
    )
