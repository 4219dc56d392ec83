"""Averages that train, against those that watch (m)."""

from collections.abc import Callable

from lab.studies.claims import measures, runs
from lab.studies.claims.averages import (
  CADENCE,
  EVALUATED,
  RAW,
  STANDARD,
  label,
  of_horizons,
)
from lab.studies.claims.claim import (
  BELOW_ONE,
  DEFAZIO,
  NOT_WORSE,
  POSITIVE,
  Part,
  best_fixed,
  register,
)
from lab.studies.claims.final_metric import ask_for_spreads, in_spreads
from lab.studies.claims.shelf import Shelf, check_available
from lab.studies.claims.statistics import Effects
from lab.studies.parts.training import Result

SEEDS = 3
RATES = (1.0, 2.0)

# Of NadamW's result and the submission's.
Effect = Callable[[Result, Result], float | None]


@register(
  name='m',
  text='Schedule-Free and primal averaging do as well as NadamW with a '
  'decaying learning rate',
  paper=DEFAZIO,
  where='Schedule-Free against schedules',
)
def trained(shelf: Shelf) -> list[Part]:
  """Train NadamW without momentum at its average, at the better one of the
  tuned learning rate and twice that rate for all workloads. Compare the final
  metric with NadamW's with a cosine to zero, without and with its best average,
  in standard deviations over seeds. As well is not worse by one. Primal
  averaging keeps the cosine, Schedule-Free has a constant rate.
  """
  for submission in runs.PRIMAL:
    check_available(submission)
  ask_for_spreads(shelf)
  best_average, _ = best_fixed(
    {name: _watched(shelf, name) for name in of_horizons(CADENCE)}, lowest=False
  )
  return [
    part
    for submission in runs.PRIMAL
    for part in _parts(shelf, submission, best_average)
  ]


def _watched(shelf: Shelf, name: str) -> Effects:
  """Final metric of NadamW's average against that of its raw weights."""

  def effect(workload: str, seed: int) -> float | None:
    plain = shelf.get(runs.tuned(workload, seed))
    if plain is None:
      return None
    pair = measures.final(plain, name), measures.final(plain)
    return in_spreads(shelf, plain, *pair)

  return shelf.effects(shelf.workloads(), shelf.seeds(SEEDS), effect)


def _compared(
  shelf: Shelf,
  effect: Effect,
  submission: str,
  rate: float,
) -> Effects:
  """An effect on each workload and seed."""

  def of(workload: str, seed: int) -> float | None:
    plain = shelf.get(runs.tuned(workload, seed))
    mine = shelf.get(runs.primal(workload, seed, submission, rate))
    return None if plain is None or mine is None else effect(plain, mine)

  return shelf.effects(shelf.workloads(), shelf.seeds(SEEDS), of)


def _parts(shelf: Shelf, submission: str, average: str) -> list[Part]:
  """Parts of one submission against NadamW, without and with an average."""

  def better(name: str) -> Effect:
    return lambda plain, mine: in_spreads(
      shelf,
      plain,
      measures.final(mine, EVALUATED),
      measures.final(plain, name),
    )

  def sooner(name: str) -> Effect:
    return lambda plain, mine: measures.ratio(
      mine, EVALUATED, measures.goal(plain), plain, name
    )

  def on_top(name: str) -> Effect:
    return lambda _, mine: in_spreads(
      shelf,
      mine,
      measures.final(mine, name),
      measures.final(mine, EVALUATED),
    )

  choices = {
    f'{rate:g}': _compared(shelf, better(RAW), submission, rate)
    for rate in RATES
  }
  chosen, _ = best_fixed(choices, lowest=False)
  rate = float(chosen)
  top, above = best_fixed(
    {
      name: _compared(shelf, on_top(name), submission, rate)
      for name in STANDARD
      if name != RAW
    },
    lowest=False,
  )
  title = f'{submission} at x{chosen}'
  others = {RAW: 'NadamW', average: f'NadamW with {label(average)}'}
  return [
    *(
      Part(
        text=f'{title}: final metric against {other}',
        unit='spreads',
        effects=_compared(shelf, better(name), submission, rate),
        claimed=NOT_WORSE,
        decides=name == RAW,
      )
      for name, other in others.items()
    ),
    *(
      Part(
        text=f'{title}: steps over those of {other}',
        unit='ratio',
        effects=_compared(shelf, sooner(name), submission, rate),
        claimed=BELOW_ONE,
        decides=False,
      )
      for name, other in others.items()
    ),
    Part(
      text=f'{title}: final metric with {label(top)} on top',
      unit='spreads',
      effects=above,
      claimed=POSITIVE,
      decides=False,
    ),
  ]
