"""Claims about one long run in the place of shorter ones (h, o).

They share NadamW's runs with a whole cosine of a part of T.
"""

import math
from collections.abc import Mapping

from lab.studies.claims import averages, measures, runs
from lab.studies.claims.averages import RAW, STANDARD, label, name_of
from lab.studies.claims.claim import (
  AJROLDI,
  ANYTIME,
  NOT_WORSE,
  Part,
  Value,
  best_fixed,
  register,
)
from lab.studies.claims.final_metric import ask_for_spreads, in_spreads
from lab.studies.claims.runs import INVERSE_SQRT
from lab.studies.claims.shelf import Shelf
from lab.studies.claims.speed import HORIZON
from lab.studies.claims.statistics import Effects

SEEDS = 3
BUDGETS = (0.25, 0.5, 0.75)
AVERAGES = tuple(name for name in STANDARD if name != RAW)
# Of the gap between the raw weights and the run with the shorter schedule.
MOST = 0.5
CONSTANT = 'constant'
ANYTIME_RATES = (1.0, 0.5)


def gap_closed(
  raw: float | None,
  average: float | None,
  short: float | None,
  higher_is_better: bool,
) -> float | None:
  """Share of the way from the raw weights to the shorter run's end.

  None where the shorter run is no better than the raw weights, up to rounding:
  there is no gap to close.

  >>> gap_closed(1.0, 0.75, 0.5, higher_is_better=False)
  0.5
  """
  gap = measures.gain(short, raw, higher_is_better)
  won = measures.gain(average, raw, higher_is_better)
  if gap is None or gap <= 1e-6:
    return None
  return measures.quotient(won, gap)


@register(
  name='h',
  text='The averages of one long run track runs with shorter schedules',
  paper=AJROLDI,
  where='averaging and annealing, Pareto comparison',
)
def tracks(shelf: Shelf) -> list[Part]:
  """Compare runs of 25, 50 and 75 % of T, each with a whole cosine, with the
  long run at the same steps: the share that the average closes of the gap
  between the long run's raw weights and the shorter run's end, where that is
  the better one. It tracks if it closes more than half, with one average for
  all workloads and budgets.
  """

  def closed(name: str, budget: float) -> Value:
    def effect(workload: str, seed: int) -> float | None:
      long = shelf.get(runs.tuned(workload, seed))
      short = shelf.get(runs.of_length(workload, seed, budget))
      if long is None or short is None:
        return None
      return gap_closed(
        measures.value_at(long, RAW, budget),
        measures.value_at(long, name, budget),
        measures.final(short),
        long['higher_is_better'],
      )

    return effect

  everything = (shelf.workloads(), shelf.seeds(SEEDS))
  found = {
    name: {b: shelf.effects(*everything, closed(name, b)) for b in BUDGETS}
    for name in AVERAGES
  }
  best, _ = best_fixed({n: _joined(by) for n, by in found.items()}, False)
  default = name_of('ema', HORIZON)
  return [
    Part(
      text=f'{label(name)} at {100 * budget:g} % of T: share of the gap closed',
      unit='fraction',
      effects=found[name][budget],
      claimed=(MOST, math.inf),
      decides=name == best,
    )
    for name in dict.fromkeys((best, default))
    for budget in BUDGETS
  ]


def _joined(by: Mapping[float, Effects]) -> Effects:
  """Effects of several settings as those of further workloads."""
  return {
    (f'{workload} {setting:g}', seed): value
    for setting, effects in by.items()
    for (workload, seed), value in effects.items()
  }


@register(
  name='o',
  text='A constant or 1/sqrt(t) learning rate with a polynomial average '
  'matches a cosine at every budget',
  paper=ANYTIME,
  where='abstract',
  figure='comparable final loss',
)
def anytime(shelf: Shelf) -> list[Part]:
  """Read one run without a budget at 25, 50, 75 and 100 % of T, and compare it
  with runs with a cosine of those lengths, in standard deviations over seeds of
  NadamW's final metric. It matches if it is not worse by one. Schedule, rate
  (x1 or x1/2) and power are the best of all workloads in hindsight.
  """
  ask_for_spreads(shelf)
  budgets = (*BUDGETS, 1.0)
  everything = (shelf.workloads(), shelf.seeds(SEEDS))

  def matches(schedule: str, rate: float, name: str, budget: float) -> Value:
    def effect(workload: str, seed: int) -> float | None:
      long = shelf.get(runs.on_schedule(workload, seed, schedule, rate))
      cosine = shelf.get(runs.of_length(workload, seed, budget))
      if long is None or cosine is None:
        return None
      pair = measures.value_at(long, name, budget), measures.final(cosine)
      return in_spreads(shelf, long, *pair)

    return effect

  found = {
    f'{schedule} x{rate:g}, {averages.polynomial(power)}': {
      budget: shelf.effects(
        *everything,
        matches(schedule, rate, averages.polynomial(power), budget),
      )
      for budget in budgets
    }
    for schedule in (CONSTANT, INVERSE_SQRT)
    for rate in ANYTIME_RATES
    for power in averages.POWERS
  }
  best, _ = best_fixed({n: _joined(by) for n, by in found.items()}, False)
  others = {n: _joined(by) for n, by in found.items()}
  other, _ = best_fixed(
    {n: by for n, by in others.items() if n.split()[0] != best.split()[0]},
    False,
  )
  return [
    Part(
      text=f'{name.replace("inverse_sqrt", "1/sqrt(t)")} at '
      f'{100 * budget:g} % of T',
      unit='spreads',
      effects=found[name][budget],
      claimed=NOT_WORSE,
      decides=name == best,
      setting={'method': name, 'budget': budget},
    )
    for name in (best, other)
    for budget in budgets
  ]
