"""Several averages of the same samples, of which one is chosen.

A list of candidates is one string, separated by commas:

  raw             the weights that are trained
  ema HORIZON     fraction of T, in (0, 1]; `lawa HORIZON` likewise
  polynomial G    the power gamma, at least 0
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

from weightavg.config_fields import config_field
from weightavg.schemes.base import SCHEMES, Scheme, register
from weightavg.schemes.raw import Raw

DEFAULT_CANDIDATES = 'raw, ema 0.01, ema 0.1, polynomial 4, polynomial 1.5'
# Of T; the benchmark evaluates every 2.7 to 8 % of its time limit.
DEFAULT_PROBE_EVERY = 0.02
# A quarter of a batch is few examples, the last few probes together are enough,
# and older ones knew other weights (lab.studies.auto_study).
DEFAULT_PROBE_MEMORY = 0.75


@register
@dataclasses.dataclass(frozen=True, repr=False)
class Auto(Scheme):
  """Averages that are kept together, and the choice among them.

  The choice needs losses on examples that were never trained on: inside
  AlgoPerf the submissions take them from the training queue, the probe fields
  say how; elsewhere the caller hands them over.

  Args:
    candidates: text such as 'raw, ema 0.1, polynomial 4', or schemes.
    probe_examples: examples held out of training, over all ranks; at least 2;
      None for a quarter of a batch.
    probe_every: fraction of T in (0, 1] between two renewals of them.
    probe_memory: weight in [0, 1) of the last probe beside this one.

  >>> Auto('raw, ema 0.1, polynomial 4').schemes
  (Raw(), Ema(horizon=0.1), Polynomial(power=4.0))
  """

  name: ClassVar[str] = 'auto'

  candidates: str | Sequence[Scheme] = config_field(
    DEFAULT_CANDIDATES,
    (str, list, tuple),
    None,
    'averages among which auto chooses',
    key='averaging_candidates',
  )
  probe_examples: int | None = config_field(
    None,
    int,
    '[2, inf)',
    'held out of training, by which auto chooses; over all ranks',
    'a quarter of a batch',
    key='averaging_probe_examples',
  )
  probe_every: float = config_field(
    DEFAULT_PROBE_EVERY,
    float,
    '(0, 1]',
    'between two renewals of these examples, fraction of T',
    key='averaging_probe_every',
  )
  probe_memory: float = config_field(
    DEFAULT_PROBE_MEMORY,
    float,
    '[0, 1)',
    "weight of the last probe's examples beside this one's",
    key='averaging_probe_memory',
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    # Hashable, and free of the caller's list.
    if not isinstance(self.candidates, str):
      object.__setattr__(self, 'candidates', tuple(self.candidates))
    _check_averages(self.names, self.schemes, self.candidates)

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the candidates, each with single spaces."""
    if isinstance(self.candidates, str):
      return names(self.candidates)
    return tuple(map(str, self.candidates))

  @property
  def schemes(self) -> tuple[Scheme, ...]:
    """The candidates, in order."""
    if isinstance(self.candidates, str):
      return parse(self.candidates)
    return tuple(self.candidates)

  def probe_every_steps(self, budget: int) -> int:
    """Steps between two renewals of the examples by which auto chooses."""
    return max(1, round(self.probe_every * budget))

  def resolved(self, samples_in: Callable[[float], int]) -> 'Candidates':
    """The candidates with their lengths in samples."""
    return Candidates(
      self.names, tuple(one.resolved(samples_in) for one in self.schemes)
    )


@dataclasses.dataclass(frozen=True, repr=False)
class Candidates(Scheme):
  """The averages that `auto` keeps, resolved.

  Args:
    names: for logs and choices.
    schemes: one for each name.
  """

  name: ClassVar[str] = 'auto'

  names: tuple[str, ...]
  schemes: tuple[Scheme, ...]

  @property
  def parts(self) -> tuple[Scheme, ...]:
    """The candidates."""
    return self.schemes

  @property
  def part_names(self) -> tuple[str, ...]:
    """Names of the candidates."""
    return self.names

  def stored(self, count: int) -> int:
    """The buffers of all candidates."""
    return sum(scheme.stored(count) for scheme in self.schemes)


def names(text: str) -> tuple[str, ...]:
  """Names of the candidates in a text, in order, each with single spaces."""
  return tuple(' '.join(part.split()) for part in text.split(','))


def parse(text: str) -> tuple[Scheme, ...]:
  """Candidates in a text, in order.

  Raises:
    ValueError: for none, an unknown one or an argument that is missing or out
      of range.
  """
  kinds = {
    scheme.candidate: scheme for scheme in SCHEMES.values() if scheme.candidate
  }
  result: list[Scheme] = []
  for name in names(text):
    word, _, argument = name.partition(' ')
    if word not in kinds:
      *first, last = (scheme.usage() for scheme in kinds.values())
      raise _invalid(
        text,
        f'Unknown candidate {name!r}. Must be {", ".join(first)} or {last}, '
        'separated by commas.',
      )
    try:
      candidate = kinds[word].from_text(argument)
    except ValueError as error:
      raise _invalid(text, str(error)) from None
    result.append(candidate)
  return tuple(result)


def _check_averages(
  names: Sequence[str], schemes: Sequence[Scheme], given: object
) -> None:
  for number, scheme in enumerate(schemes):
    is_one = isinstance(scheme, Scheme) and len(scheme.parts) == 1
    # The parts of `auto` itself are not resolved yet.
    if not is_one or isinstance(scheme, Auto):
      raise _invalid(given, f'{scheme!r} is not a single average.')
    # Two buffers and two evaluations for one average.
    if scheme in schemes[:number]:
      raise _invalid(given, f'Candidate {names[number]!r} is given twice.')
  if all(isinstance(scheme, Raw) for scheme in schemes):
    raise _invalid(given, 'Must name at least one average.')


def _invalid(given: object, why: str) -> ValueError:
  return ValueError(f'Invalid averaging_candidates={given!r}. {why}')
