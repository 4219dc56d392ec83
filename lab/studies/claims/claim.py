"""A claim of a paper, its parts, and the registry of all that there are."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lab.core.errors import InputError
from lab.studies.claims import statistics
from lab.studies.claims.shelf import Shelf
from lab.studies.claims.statistics import Effects

# An effect by workload and seed.
Value = Callable[[str, int], float | None]
INFINITY = math.inf
# Claimed ranges of effects.
BELOW_ONE = (-INFINITY, 1.0)
ABOVE_ONE = (1.0, INFINITY)
POSITIVE = (0.0, INFINITY)
NEGATIVE = (-INFINITY, 0.0)
# In spreads over seeds: worse by less than one.
NOT_WORSE = (-1.0, INFINITY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paper:
  """A publication.

  Args:
    cite: authors and year.
    arxiv: number.
  """

  cite: str
  arxiv: str

  @property
  def url(self) -> str:
    """Address of its page."""
    return f'https://arxiv.org/abs/{self.arxiv}'


AJROLDI = Paper(cite='Ajroldi et al. 2025', arxiv='2502.06761')
KADDOUR = Paper(cite='Kaddour 2022', arxiv='2209.14981')
MORALES = Paper(cite='Morales-Brotons et al. 2024', arxiv='2411.18704')
ANYTIME = Paper(cite='Meterez et al. 2026', arxiv='2602.03702')
DEFAZIO = Paper(cite='Defazio et al. 2024', arxiv='2405.15682')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """One measured effect of a claim.

  Args:
    text: what is measured.
    unit: of the effect: 'ratio', 'fraction', 'spreads' or 'horizon'.
    effects: by workload and seed; None where a run has none.
    claimed: open range of effects for which the part holds.
    on_each: whether it must hold on every workload by itself.
    decides: whether the claim's verdict depends on it.
    setting: further columns, for figures.
  """

  text: str
  unit: str
  effects: Effects
  claimed: tuple[float, float]
  on_each: bool = False
  decides: bool = True
  setting: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """State what a paper says, and how it is measured here.

  Args:
    name: one letter or word.
    text: the claim.
    paper: that makes it; None for a question of this project.
    where: section, figure or table, or the abstract.
    figure: the number that the paper gives; empty without one.
    how: what is measured, in a sentence or two.
    measure: parts from the results of runs.
  """

  name: str
  text: str
  paper: Paper | None
  where: str
  figure: str = ''
  how: str
  measure: Callable[[Shelf], list[Part]]


CLAIMS: dict[str, Claim] = {}


def register(**fields: Any) -> Callable[[Any], Any]:
  """Make a function from the shelf of results to parts a claim.

  Its docstring says how the claim is measured.

  Raises:
    ValueError: for a name that another claim has.
  """

  def decorate(measure: Callable[[Shelf], list[Part]]) -> Any:
    name = fields['name']
    if name in CLAIMS:
      raise ValueError(f'Invalid name={name!r}. Another claim has it already.')
    how = ' '.join((measure.__doc__ or '').split())
    CLAIMS[name] = Claim(measure=measure, how=how, **fields)
    return measure

  return decorate


def named(names: Iterable[str]) -> list[Claim]:
  """Claims in the order of their names.

  Raises:
    InputError: no claim has this name.
  """
  for name in names:
    if name not in CLAIMS:
      raise InputError(
        f'Invalid claim={name!r}. Must be among {", ".join(sorted(CLAIMS))}.'
      )
  return [CLAIMS[name] for name in sorted(names, key=_order)]


def _order(name: str) -> tuple[int, str]:
  return (len(name), name)


def best_fixed(
  choices: Mapping[str, Effects], lowest: bool = True
) -> tuple[str, Effects]:
  """The choice with the best median over all workloads and seeds.

  One choice for all of them; its effect is slightly too good, since it was
  chosen by it.
  """
  sign = 1.0 if lowest else -1.0

  def rank(name: str) -> float:
    median = statistics.median(choices[name])
    return math.inf if math.isnan(median) else sign * median

  name = min(choices, key=rank)
  return name, choices[name]
