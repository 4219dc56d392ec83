"""Claims about the final metric and the decay of the learning rate.

f, g, h, i of Ajroldi et al., n of Morales-Brotons et al., o of the anytime
schedules. They share runs on other schedules and of shorter budgets.
"""

import math
from collections.abc import Callable, Mapping

from lab.studies.claims import averages, measures, runs
from lab.studies.claims.averages import RAW, STANDARD, label, name_of
from lab.studies.claims.claim import (
  AJROLDI,
  ANYTIME,
  MORALES,
  NEGATIVE,
  NOT_WORSE,
  POSITIVE,
  Part,
  best_fixed,
  register,
)
from lab.studies.claims.runs import INVERSE_SQRT
from lab.studies.claims.shelf import Shelf
from lab.studies.claims.speed import HORIZON, SCHEMES
from lab.studies.claims.statistics import Effects
from lab.studies.parts.training import Result

SEEDS = 3
# Claim f is one of the first table; its seeds give the spread for all claims.
SPREAD_OF = 5
BUDGETS = (0.25, 0.5, 0.75)
HALF, CONSTANT, COSINE = 'cosine_to_half', 'constant', 'cosine'
AVERAGES = tuple(name for name in STANDARD if name != RAW)
# Of the gap between the raw weights and the run with the shorter schedule.
MOST = 0.5
ANYTIME_RATES = (1.0, 0.5)

Value = Callable[[str, int], float | None]


def _spread(shelf: Shelf, workload: str) -> float | None:
  """Standard deviation over five seeds of NadamW's final metric."""
  results = [shelf.get(runs.tuned(workload, s)) for s in shelf.seeds(SPREAD_OF)]
  finals = [None if r is None else measures.final(r) for r in results]
  return measures.spread(finals)


def ask_for_spreads(shelf: Shelf) -> None:
  """Ask for the runs that `in_spreads` needs, before there are results."""
  for workload in shelf.workloads():
    _spread(shelf, workload)


def in_spreads(
  shelf: Shelf, result: Result, new: float | None, old: float | None
) -> float | None:
  """Improvement in standard deviations over seeds of NadamW's final metric.

  Args:
    shelf: with NadamW's runs.
    result: of a run of the same workload.
    new: value of the metric.
    old: value of the metric.
  """
  spread = _spread(shelf, result['workload'])
  found = measures.difference(new, old)
  if spread is None or found is None:
    return None
  return (found if result['higher_is_better'] else -found) / spread


def _on_schedule(
  shelf: Shelf, workload: str, seed: int, schedule: str, rate: float = 1.0
) -> Result | None:
  return shelf.get(runs.on_schedule(workload, seed, schedule, rate))


@register(
  name='f',
  text='At a fixed budget averaging leaves the final metric slightly better or '
  'equal, never worse',
  paper=AJROLDI,
  where='abstract: mildly improves generalization',
)
def fixed_budget(shelf: Shelf) -> list[Part]:
  """Compare the final validation metric of the average with that of the raw
  weights of the same run, in standard deviations over seeds of the latter. Not
  worse is above -1; it must hold on every workload.
  """

  def improvement(name: str) -> Effects:
    def effect(workload: str, seed: int) -> float | None:
      result = shelf.get(runs.tuned(workload, seed))
      if result is None:
        return None
      pair = measures.final(result, name), measures.final(result)
      return in_spreads(shelf, result, *pair)

    return shelf.effects(shelf.workloads(), shelf.seeds(SPREAD_OF), effect)

  parts = []
  for name in (name_of(scheme, HORIZON) for scheme in SCHEMES):
    effects = improvement(name)
    text = f'{label(name)} against raw'
    parts += [
      Part(
        text=f'{text}: not worse by a spread, on every workload',
        unit='spreads',
        effects=effects,
        claimed=NOT_WORSE,
        on_each=True,
      ),
      Part(
        text=f'{text}: better',
        unit='spreads',
        effects=effects,
        claimed=POSITIVE,
        decides=False,
      ),
    ]
  return parts


@register(
  name='g',
  text='The gain shrinks as the learning rate anneals to zero, and is large '
  'with a decay to half or none',
  paper=AJROLDI,
  where='averaging and annealing',
)
def anneals(shelf: Shelf) -> list[Part]:
  """Compare the gain of the average over the raw weights at T, as a fraction of
  the metric: without decay, or with a decay to half of the peak, minus with a
  cosine to zero at the same seed.
  """

  def gain(name: str, schedule: str) -> Value:
    def effect(workload: str, seed: int) -> float | None:
      result = _on_schedule(shelf, workload, seed, schedule)
      if result is None:
        return None
      return measures.gain(
        measures.final(result, name),
        measures.final(result),
        result['higher_is_better'],
      )

    return effect

  def more(name: str, schedule: str) -> Value:
    mine, annealed = gain(name, schedule), gain(name, COSINE)
    return lambda w, seed: measures.difference(mine(w, seed), annealed(w, seed))

  everything = (shelf.workloads(), shelf.seeds(SEEDS))
  parts = []
  for name in (*(name_of(s, HORIZON) for s in SCHEMES), name_of('ema', 0.1)):
    parts += [
      Part(
        text=f'{label(name)}: gain with {text} minus gain with decay to zero',
        unit='fraction',
        effects=shelf.effects(*everything, more(name, schedule)),
        claimed=POSITIVE,
        decides=name in (name_of(s, HORIZON) for s in SCHEMES),
      )
      for schedule, text in ((HALF, 'decay to half'), (CONSTANT, 'no decay'))
    ]
    parts.append(
      Part(
        text=f'{label(name)}: gain with decay to zero',
        unit='fraction',
        effects=shelf.effects(*everything, gain(name, COSINE)),
        claimed=POSITIVE,
        decides=False,
      )
    )
  return parts


def gap_closed(
  raw: float | None, average: float | None, short: float | None
) -> float | None:
  """Share of the way from the raw weights to the shorter run's end.

  None where the shorter run is no better than the raw weights, up to rounding.

  >>> gap_closed(1.0, 0.75, 0.5)
  0.5
  """
  if raw is None or average is None or short is None:
    return None
  gap = short - raw
  return (average - raw) / gap if abs(gap) > 1e-6 * abs(raw) else None


@register(
  name='h',
  text='The averages of one long run track runs with shorter schedules',
  paper=AJROLDI,
  where='averaging and annealing, Pareto comparison',
)
def tracks(shelf: Shelf) -> list[Part]:
  """Compare runs of 25, 50 and 75 % of T, each with a whole cosine, with the
  long run at the same steps: the share that the average closes of the gap
  between the long run's raw weights and the shorter run's end. It tracks if it
  closes more than half, with one average for all workloads and budgets.
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
  name='i',
  text='Without any decay of the learning rate averaging does not reach the '
  'annealed run',
  paper=AJROLDI,
  where='averaging and annealing',
)
def without_decay(shelf: Shelf) -> list[Part]:
  """Compare the final metric of the best average of the run with a constant
  rate with that of the raw weights of the run with a cosine to zero, as a
  fraction. The average is the best one of all workloads in hindsight.
  """

  def behind(name: str) -> Value:
    def effect(workload: str, seed: int) -> float | None:
      constant = _on_schedule(shelf, workload, seed, CONSTANT)
      annealed = _on_schedule(shelf, workload, seed, COSINE)
      if constant is None or annealed is None:
        return None
      return measures.gain(
        measures.final(constant, name),
        measures.final(annealed),
        annealed['higher_is_better'],
      )

    return effect

  everything = (shelf.workloads(), shelf.seeds(SEEDS))
  best, effects = best_fixed(
    {n: shelf.effects(*everything, behind(n)) for n in AVERAGES}, lowest=False
  )
  raw = shelf.effects(*everything, behind(RAW))
  return [
    Part(
      text=f'{text} of the constant run minus the annealed run',
      unit='fraction',
      effects=effects,
      claimed=NEGATIVE,
      decides=decides,
    )
    for text, effects, decides in (
      (label(best), effects, True),
      ('raw weights', raw, False),
    )
  ]


@register(
  name='n',
  text='EMA needs less decay of the learning rate',
  paper=MORALES,
  where='abstract',
)
def less_decay(shelf: Shelf) -> list[Part]:
  """Compare what it costs the final metric to stop the decay at half of the
  peak, as a fraction of it: for the raw weights minus for EMA.
  """

  def loss(name: str) -> Value:
    def effect(workload: str, seed: int) -> float | None:
      half = _on_schedule(shelf, workload, seed, HALF)
      zero = _on_schedule(shelf, workload, seed, COSINE)
      if half is None or zero is None:
        return None
      found = measures.gain(
        measures.final(half, name),
        measures.final(zero, name),
        zero['higher_is_better'],
      )
      return None if found is None else -found

    return effect

  everything = (shelf.workloads(), shelf.seeds(SEEDS))
  raw = loss(RAW)
  parts = []
  for horizon in (0.01, 0.1):
    name = name_of('ema', horizon)
    own = loss(name)

    def less(workload: str, seed: int, own: Value = own) -> float | None:
      return measures.difference(raw(workload, seed), own(workload, seed))

    parts += [
      Part(
        text=f'cost of half the decay: raw minus {label(name)}',
        unit='fraction',
        effects=shelf.effects(*everything, less),
        claimed=POSITIVE,
        decides=horizon == HORIZON,
      ),
      Part(
        text=f'{label(name)}: cost of half the decay',
        unit='fraction',
        effects=shelf.effects(*everything, own),
        claimed=NEGATIVE,
        decides=False,
      ),
    ]
  return parts


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
      long = _on_schedule(shelf, workload, seed, schedule, rate)
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
