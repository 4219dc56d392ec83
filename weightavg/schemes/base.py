"""A weighting of samples, and the registry of all that there are.

After k samples x_1..x_k an average is sum_j w_j x_j with sum_j w_j = 1. A
scheme owns everything about its weighting that holds no tensors: its name, its
fields and their keys in a search space, its form among the candidates of
`auto`, its weights w_j, and how many buffers it needs. Two kinds of buffers
exist: one running average (`Recursive`) or the last samples (`Windowed`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from weightavg import config_fields

# Horizon and cadence that apply unless given, as fractions of T: those of
# Ajroldi et al. 2025 (2502.06761).
DEFAULT_HORIZON = 0.01
DEFAULT_EVERY = 0.002

# Every scheme by its name in a search space, in the order of registration.
SCHEMES: 'dict[str, type[Scheme]]' = {}
_Class = TypeVar('_Class', bound='type[Scheme]')


def register(scheme: _Class) -> _Class:
  """Make a scheme known to configurations, candidates and offline plans.

  Raises:
    ValueError: for a name that another scheme has, or none.
  """
  if not hasattr(scheme, 'name'):
    raise ValueError(
      f'Missing name of {scheme.__qualname__}. Must be a ClassVar[str], the '
      'value of averaging_scheme.'
    )
  known = SCHEMES.setdefault(scheme.name, scheme)
  if known.__qualname__ != scheme.__qualname__:
    raise ValueError(
      f'Invalid name={scheme.name!r}. {known.__qualname__} has it already.'
    )
  SCHEMES[scheme.name] = scheme
  return scheme


@dataclasses.dataclass(frozen=True)
class Scheme:
  """A weighting of samples; subclasses declare their fields.

  A horizon is a fraction of the training budget T; `resolved` turns it into
  samples, which `weights` needs.
  """

  # In a search space.
  name: ClassVar[str]
  # Among the candidates of `auto`: its word there (None: no candidate), and
  # the field whose value follows it.
  candidate: ClassVar[str | None] = None
  argument: ClassVar[str | None] = None
  # mu where a point does not give averaging_interpolation.
  default_interpolation: ClassVar[float] = 0.0
  # Fields of which at most one may be given.
  exclusive: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self) -> None:
    config_fields.check_fields(self)
    values = {name: getattr(self, name) for name in self.exclusive}
    _check_exclusive(values)

  def __repr__(self) -> str:
    given = (
      f'{field.name}={getattr(self, field.name)!r}'
      for field in dataclasses.fields(self)
      if getattr(self, field.name) is not None
    )
    return f'{type(self).__name__}({", ".join(given)})'

  @classmethod
  def from_point(cls, point: Mapping[str, Any]) -> 'Scheme':
    """Build the scheme from the keys of a search space; null means default.

    Raises:
      ValueError: naming a key that is ill-typed, out of range or contradicts
        another.
    """
    given = {key: value for key, value in point.items() if value is not None}
    keys = cls.exclusive_keys()
    _check_exclusive({key: given[key] for key in given if key in keys})
    return config_fields.read_fields(cls, given)

  @classmethod
  def exclusive_keys(cls) -> set[str]:
    """Keys of a point of which at most one may be given."""
    return {
      key
      for key, field in config_fields.fields_by_key(cls).items()
      if field.name in cls.exclusive
    }

  @classmethod
  def from_text(cls, argument: str) -> 'Scheme':
    """Build the scheme from what follows its word in a list of candidates.

    Raises:
      ValueError: for an argument that is missing, superfluous or out of range.
    """
    if cls.argument is None:
      if argument:
        raise ValueError(f'{cls.candidate} takes no argument: {argument!r}.')
      return cls()
    fields = {field.name: field for field in dataclasses.fields(cls)}
    interval = fields[cls.argument].metadata['allowed']
    try:
      value = float(argument)
    except ValueError:
      value = math.nan
    if not config_fields.in_interval(value, interval) or math.isinf(value):
      raise ValueError(
        f'The {cls.argument} of {cls.candidate} is {argument!r}. Must be in '
        f'{interval}.'
      )
    return cls(**{cls.argument: value})

  @classmethod
  def usage(cls) -> str:
    """The form of a candidate: 'ema HORIZON'."""
    return ' '.join(filter(None, [cls.candidate, (cls.argument or '').upper()]))

  @property
  def cadence_key(self) -> str | None:
    """Key of a field that fixes the cadence, if one is set."""
    return None

  def default_every(
    self, budget: int | None, steps_per_epoch: int | None
  ) -> int:
    """Steps between two samples where no cadence is given.

    Args:
      budget: T, in steps; None where it is not known.
      steps_per_epoch: steps; None where it is not known.
    """
    del steps_per_epoch
    return 1 if budget is None else max(1, round(DEFAULT_EVERY * budget))

  def resolved(self, samples_in: Callable[[float], int]) -> 'Scheme':
    """The same scheme with its length in samples.

    Args:
      samples_in: number of samples in a fraction of T, at least 1.
    """
    del samples_in
    return self

  @property
  def parts(self) -> 'tuple[Scheme, ...]':
    """The averages that are kept: itself, or the candidates of `auto`."""
    return (self,)

  @property
  def part_names(self) -> tuple[str, ...]:
    """Names of the averages among which one is chosen, if there are several."""
    return ()

  def weights(self, count: int) -> list[float]:
    """Weights of samples 1..count, the oldest first."""
    raise NotImplementedError(f'{type(self).__name__}.weights')

  def stored(self, count: int) -> int:
    """Number of buffers, each as large as the model, after `count` samples."""
    raise NotImplementedError(f'{type(self).__name__}.stored')


class Recursive(Scheme):
  """An average that follows a_k = a_{k-1} + c_k (x_k - a_{k-1}), with c_1 = 1.

  One buffer, in float32 at least. No start value leaks in, since c_1 = 1.
  """

  def coefficient(self, count: int) -> float:
    """c_k: weight with which the count-th sample (1, 2, ...) enters."""
    raise NotImplementedError(f'{type(self).__name__}.coefficient')

  def sample_weight(self, count: int, largest_rate: float) -> float | None:
    """w_k of a scheme with c_k = w_k / (w_1 + ... + w_k); None for others.

    Args:
      count: k.
      largest_rate: the largest learning rate up to the k-th sample.
    """
    del count, largest_rate
    return None

  def weights(self, count: int) -> list[float]:
    """w_j = c_j prod_{i>j} (1 - c_i), accumulated from the last sample back."""
    weights = [0.0] * count
    remaining = 1.0
    for j in range(count, 0, -1):
      c = self.coefficient(j)
      weights[j - 1] = c * remaining
      remaining *= 1.0 - c
    return weights

  def stored(self, count: int) -> int:
    """The running average, from the first sample on."""
    return min(count, 1)


class Windowed(Scheme):
  """The uniform mean of the last `size` samples, or of all if they are fewer.

  One buffer for each sample, in the weights' own dtype.
  """

  @property
  def size(self) -> int:
    """Samples in the window."""
    raise NotImplementedError(f'{type(self).__name__}.size')

  def weights(self, count: int) -> list[float]:
    """Weights of samples 1..count."""
    used = min(count, self.size)
    return [0.0] * (count - used) + [1.0 / used] * used

  def stored(self, count: int) -> int:
    """The samples in the window."""
    return min(count, self.size)


def _check_exclusive(values: Mapping[str, Any]) -> None:
  given = [name for name, value in values.items() if value is not None]
  if len(given) > 1:
    raise ValueError(f'Contradicting {" and ".join(given)}. Give one of them.')
