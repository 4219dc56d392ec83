"""Claims about averages and the decay of the learning rate (g, i, n)."""

from lab.studies.claims import measures, runs
from lab.studies.claims.averages import RAW, STANDARD, label, name_of
from lab.studies.claims.claim import (
  AJROLDI,
  MORALES,
  NEGATIVE,
  POSITIVE,
  Part,
  Value,
  best_fixed,
  register,
)
from lab.studies.claims.shelf import Shelf
from lab.studies.claims.speed import HORIZON, SCHEMES
from lab.studies.parts.training import Result

SEEDS = 3
HALF, CONSTANT, COSINE = 'cosine_to_half', 'constant', 'cosine'
AVERAGES = tuple(name for name in STANDARD if name != RAW)


def _on_schedule(
  shelf: Shelf, workload: str, seed: int, schedule: str
) -> Result | None:
  return shelf.get(runs.on_schedule(workload, seed, schedule))


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
