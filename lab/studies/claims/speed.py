"""Claims about the steps and the seconds that averaging saves (a to e, j)."""

import functools
import math
from collections.abc import Callable

from lab.studies.claims import averages, measures, runs
from lab.studies.claims.averages import CADENCE, RAW, label, name_of
from lab.studies.claims.claim import (
  ABOVE_ONE,
  AJROLDI,
  BELOW_ONE,
  Part,
  best_fixed,
  register,
)
from lab.studies.claims.runs import Run
from lab.studies.claims.shelf import Shelf
from lab.studies.claims.statistics import Effects

SEEDS = 5
SCHEMES = ('ema', 'lawa')
# The paper's horizon.
HORIZON = 0.01
RATES = (0.25, 0.5, 2.0, 4.0)
# Two evaluations, as a fraction of T: less is the noise of one crossing.
NEAR = 0.04


def ratios(
  shelf: Shelf,
  run: Callable[[str, int], Run],
  name: str,
  seconds: bool = False,
) -> Effects:
  """Steps of an average to the goal over those of its run's raw weights."""

  def effect(workload: str, seed: int) -> float | None:
    result = shelf.get(run(workload, seed))
    if result is None:
      return None
    level = measures.goal(result)
    return measures.ratio(result, name, level, seconds=seconds)

  return shelf.effects(shelf.workloads(), shelf.seeds(SEEDS), effect)


def _saved(
  shelf: Shelf, run: Callable[[str, int], Run], names: list[str]
) -> list[Part]:
  """Ratios at the paper's horizon, and at the best one of all workloads."""
  parts = []
  for scheme in SCHEMES:
    name = name_of(scheme, HORIZON)
    effects = ratios(shelf, run, name)
    text = f'{label(name)}: steps over those of the raw weights'
    parts += [
      Part(text=text, unit='ratio', effects=effects, claimed=BELOW_ONE),
      Part(
        text=f'{text}, on every workload',
        unit='ratio',
        effects=effects,
        claimed=BELOW_ONE,
        on_each=True,
      ),
    ]
  for scheme in SCHEMES:
    own = [name for name in names if name.startswith(scheme)]
    best, effects = best_fixed({n: ratios(shelf, run, n) for n in own})
    parts.append(
      Part(
        text=f'{label(best)}, the best single horizon of {scheme.upper()}',
        unit='ratio',
        effects=effects,
        claimed=BELOW_ONE,
        decides=False,
      )
    )
  return parts


@register(
  name='a',
  text='LAWA and EMA reach the target in fewer steps than NadamW, on every '
  'workload',
  paper=AJROLDI,
  where='steps to target on AlgoPerf',
  figure='0.78 to 0.82 of the steps',
)
def steps(shelf: Shelf) -> list[Part]:
  """Divide the steps of the average to the goal by those of the raw weights of
  the same run, at the tuned point, with a horizon of 1 % of T.
  """
  return _saved(shelf, runs.tuned, list(averages.of_horizons(CADENCE)))


@register(
  name='b',
  text='LAWA and EMA save GPU-hours',
  paper=AJROLDI,
  where='Table 1',
  figure='12 to 15 % of the GPU-hours',
)
def hours(shelf: Shelf) -> list[Part]:
  """Divide the billed seconds to the goal, the average's own included, by those
  of the raw weights, on one core of a CPU.
  """
  parts = []
  for scheme in SCHEMES:
    name = name_of(scheme, HORIZON)
    parts.append(
      Part(
        text=f'{label(name)}: seconds over those of the raw weights',
        unit='ratio',
        effects=ratios(shelf, runs.tuned, name, seconds=True),
        claimed=BELOW_ONE,
      )
    )
  return parts


@register(
  name='c',
  text='LAWA and EMA reach the target in fewer steps than Distributed Shampoo',
  paper=AJROLDI,
  where='Shampoo on AlgoPerf',
)
def with_shampoo(shelf: Shelf) -> list[Part]:
  """Measure as claim a, with Shampoo's raw weights as the baseline."""
  names = [n for n in averages.STANDARD if n.split()[0] in SCHEMES]
  return _saved(shelf, runs.shampoo, names)


def _arrival_share(
  shelf: Shelf, workload: str, seed: int, name: str
) -> float | None:
  """Arrival at the goal as a fraction of T; twice T if never."""
  result = shelf.get(runs.tuned(workload, seed))
  level = None if result is None else measures.goal(result)
  if result is None or level is None:
    return None
  found = measures.arrival(result, name, level)
  never = measures.NEVER * result['budget_steps']
  return (never if found is None else found) / result['budget_steps']


def best_horizon(arrivals: dict[float, float]) -> float:
  """Horizon of the first arrival; of several, their geometric mean.

  >>> round(best_horizon({0.01: 0.7, 0.02: 0.6, 0.05: 0.6, 0.1: 0.8}), 4)
  0.0316
  """
  first = min(arrivals.values())
  best = [h for h, at in arrivals.items() if at <= first + 1e-9]
  return math.exp(sum(map(math.log, best)) / len(best))


@register(
  name='d',
  text='A horizon near 1 % of T is best, in a broad optimum; both extremes are '
  'worse',
  paper=AJROLDI,
  where='horizon of the average',
  figure='1 % of T',
)
def horizon(shelf: Shelf) -> list[Part]:
  """Follow each tuned run with seven horizons from 0.5 to 20 % of T. Best is
  the horizon that arrives first (near 1 %: between 0.5 and 2 %); 20 % and no
  average at all must be later than 1 %; broad means that 0.5 and 2 % arrive
  within two evaluations of 1 %.
  """
  everything = (shelf.workloads(), shelf.seeds(SEEDS))
  parts = []
  for scheme in SCHEMES:

    def best(workload: str, seed: int, scheme: str = scheme) -> float | None:
      found = {
        h: _arrival_share(shelf, workload, seed, name_of(scheme, h))
        for h in CADENCE
      }
      known = {h: at for h, at in found.items() if at is not None}
      return best_horizon(known) if known else None

    def compare(
      how: Callable[[float, float], float], name: str, scheme: str = scheme
    ) -> Callable[[str, int], float | None]:
      def effect(workload: str, seed: int) -> float | None:
        other = _arrival_share(shelf, workload, seed, name)
        mine = _arrival_share(shelf, workload, seed, name_of(scheme, HORIZON))
        if other is None or mine is None:
          return None
        return how(other, mine)

      return effect

    title = scheme.upper()
    parts.append(
      Part(
        text=f'{title}: horizon that arrives first',
        unit='horizon',
        effects=shelf.effects(*everything, best),
        claimed=(0.005 - 1e-9, 0.02 + 1e-9),
      )
    )
    for name, text in (
      (name_of(scheme, 0.2), f'{title}: steps at 20 % over those at 1 %'),
      (RAW, f'steps without averaging over those of {title} 1 %'),
    ):
      divide = compare(lambda other, mine: other / mine, name)
      parts.append(
        Part(
          text=text,
          unit='ratio',
          effects=shelf.effects(*everything, divide),
          claimed=ABOVE_ONE,
        )
      )
    for near in (0.005, 0.02):
      subtract = compare(
        lambda other, mine: other - mine, name_of(scheme, near)
      )
      parts.append(
        Part(
          text=f'{title}: arrival at {100 * near:g} % minus that at 1 %, of T',
          unit='fraction',
          effects=shelf.effects(*everything, subtract),
          claimed=(-NEAR, NEAR),
        )
      )
  return parts


@register(
  name='e',
  text='The speed-up holds at learning rates from x1/4 to x4',
  paper=AJROLDI,
  where='robustness to the learning rate',
)
def rates(shelf: Shelf) -> list[Part]:
  """Measure as claim a, in runs at multiples of the tuned learning rate. Where
  the raw weights miss the target, the goal is their own level at three quarters
  of T.
  """
  return [
    Part(
      text=f'{label(name_of(scheme, HORIZON))} at x{rate:g}: steps over those '
      'of the raw weights',
      unit='ratio',
      effects=ratios(
        shelf,
        functools.partial(runs.at_rate, rate=rate),
        name_of(scheme, HORIZON),
      ),
      claimed=BELOW_ONE,
      setting={'rate': rate, 'average': name_of(scheme, HORIZON)},
    )
    for rate in RATES
    for scheme in SCHEMES
  ]


# Of the seconds of training.
SMALL_COST = 0.01


@register(
  name='j',
  text='Averaging costs next to nothing per step',
  paper=AJROLDI,
  where='abstract',
  figure='minimal implementation and memory cost',
)
def cost(shelf: Shelf) -> list[Part]:
  """Divide the seconds of the updates and swaps of an average at the default
  cadence by those of the training alone. Next to nothing is below 1 %. Other
  averages follow the same run and compete for its cache.
  """

  def share(name: str) -> Effects:
    def effect(workload: str, seed: int) -> float | None:
      result = shelf.get(runs.tuned(workload, seed))
      return None if result is None else measures.averaging_share(result, name)

    return shelf.effects(shelf.workloads(), shelf.seeds(SEEDS), effect)

  return [
    Part(
      text=f'{label(name)}: seconds over those of the training',
      unit='fraction',
      effects=share(name),
      claimed=(-math.inf, SMALL_COST),
    )
    for name in (name_of(scheme, HORIZON) for scheme in SCHEMES)
  ]
