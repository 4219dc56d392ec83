"""Claims of Kaddour 2022 about LAWA (k), and its comparison with Lookahead (l).

An epoch is a ninetieth of T, as in the paper's run on ImageNet. Where data
repeat, a run passes ten times over a tenth of them.
"""

import math
import statistics

from lab.studies.claims import averages, measures, runs
from lab.studies.claims.averages import (
  CADENCE,
  CURRENT,
  RAW,
  RECOMPUTED,
  UNIFORM,
  WINDOW,
  WINDOWS,
  label,
  name_of,
  window,
)
from lab.studies.claims.claim import (
  ABOVE_ONE,
  BELOW_ONE,
  KADDOUR,
  NEGATIVE,
  Part,
  best_fixed,
  register,
)
from lab.studies.claims.shelf import Shelf
from lab.studies.claims.speed import HORIZON
from lab.studies.claims.statistics import Effects

SEEDS = 5
SEEDS_REPEATED = 3
REPEATED = ('glyph_resnet', 'stdlib_lm')
PASSES = 10
# The level that the raw weights have reached here is the middle of training.
MIDDLE = 0.5
# Of T: where an average of the first epochs holds mostly initial weights.
EARLY = 0.1
# Of the metric: less is no large effect.
SMALL = 0.005
LAWA = window(WINDOW)
BATCH_NORM = ('glyph_resnet',)


def _middle(
  shelf: Shelf,
  name: str,
  other: str = RAW,
  passes: int = 1,
  workloads: tuple[str, ...] = (),
  seeds: int = SEEDS,
) -> Effects:
  """Steps of an average over those of another one to the middle's level."""

  def effect(workload: str, seed: int) -> float | None:
    result = shelf.get(runs.in_epochs(workload, seed, passes))
    if result is None:
      return None
    level = measures.level_at(result, MIDDLE)
    if level is None:
      return None
    return measures.ratio(result, name, level, baseline_name=other)

  return shelf.effects(shelf.workloads(*workloads), shelf.seeds(seeds), effect)


def _between(
  shelf: Shelf, name: str, other: str, start: float, end: float
) -> Effects:
  """Mean gain of one average over another within a span of T."""

  def effect(workload: str, seed: int) -> float | None:
    result = shelf.get(runs.in_epochs(workload, seed))
    if result is None or not {name, other} <= result['curves'].keys():
      return None
    budget = result['budget_steps']
    gains = [
      measures.gain(mine.value, theirs.value, result['higher_is_better'])
      for mine, theirs in zip(
        measures.points(result, name),
        measures.points(result, other),
        strict=True,
      )
      if start * budget <= mine.step <= end * budget
    ]
    known = [g for g in gains if g is not None and math.isfinite(g)]
    return statistics.fmean(known) if known else None

  variants = (CURRENT, RECOMPUTED)
  needs_statistics = name.endswith(variants) or other.endswith(variants)
  workloads = shelf.workloads(*(BATCH_NORM if needs_statistics else ()))
  return shelf.effects(workloads, shelf.seeds(SEEDS), effect)


@register(
  name='k',
  text='LAWA with k = 6 at epoch cadence speeds up the middle of training; '
  'k > 16 hurts; uniform beats exponential slightly; averaging from the first '
  'steps hurts; recomputing the statistics of BatchNorm has no large effect',
  paper=KADDOUR,
  where='abstract; experiments',
  figure='dozens of epochs sooner; k = 6',
)
def epochs(shelf: Shelf) -> list[Part]:
  """Sample once in an epoch, a ninetieth of T, of data without end. The middle
  is the level that the raw weights reach in the first half of T. From the first
  steps: mean gain over the raw weights within the first tenth of T. BatchNorm:
  mean gain in the second half of T by recomputing the averaged statistics; no
  large effect is within 0.5 % of the metric.
  """
  half = (0.5, 1.0)
  parts = [
    Part(
      text='LAWA, k = 6: steps to the middle over those of the raw weights',
      unit='ratio',
      effects=_middle(shelf, LAWA),
      claimed=BELOW_ONE,
    ),
    *(
      Part(
        text=f'steps to the middle, k = {longer} over k = 6',
        unit='ratio',
        effects=_middle(shelf, window(longer), LAWA),
        claimed=ABOVE_ONE,
        # The paper says more than 16.
        decides=longer == max(WINDOWS),
      )
      for longer in WINDOWS[1:]
    ),
    Part(
      text='steps to the middle, EMA of 6 epochs over LAWA, k = 6',
      unit='ratio',
      effects=_middle(shelf, window(WINDOW, 'ema'), LAWA),
      claimed=ABOVE_ONE,
    ),
    Part(
      text='LAWA, k = 6: gain over the raw weights in the first tenth of T',
      unit='fraction',
      effects=_between(shelf, LAWA, RAW, 0.0, EARLY),
      claimed=NEGATIVE,
    ),
    Part(
      text='steps to the middle, mean of all weights from the start over k = 6',
      unit='ratio',
      effects=_middle(shelf, UNIFORM, LAWA),
      claimed=ABOVE_ONE,
      decides=False,
    ),
    Part(
      text='LAWA, k = 6, where data repeat ten times: steps to the middle over '
      'those of the raw weights',
      unit='ratio',
      effects=_middle(
        shelf,
        LAWA,
        passes=PASSES,
        workloads=REPEATED,
        seeds=SEEDS_REPEATED,
      ),
      claimed=BELOW_ONE,
      decides=False,
    ),
    Part(
      text='BatchNorm: gain by recomputed over averaged statistics',
      unit='fraction',
      effects=_between(shelf, f'{LAWA} {RECOMPUTED}', LAWA, *half),
      claimed=(-SMALL, SMALL),
    ),
    Part(
      text="BatchNorm: gain by averaged over the live model's statistics",
      unit='fraction',
      effects=_between(shelf, LAWA, f'{LAWA} {CURRENT}', *half),
      claimed=(-SMALL, SMALL),
      decides=False,
    ),
  ]
  return [part for part in parts if part.effects]


SEEDS_OF_L = 3


@register(
  name='l',
  text='LAWA beats Lookahead',
  paper=KADDOUR,
  where='appendix B',
)
def against_lookahead(shelf: Shelf) -> list[Part]:
  """Divide the steps of LAWA to NadamW's goal by those of NadamW inside
  Lookahead (k = 5, alpha = 0.5) at the same point and seed.
  """

  def beats(name: str) -> Effects:
    def effect(workload: str, seed: int) -> float | None:
      plain = shelf.get(runs.tuned(workload, seed))
      slow = shelf.get(runs.lookahead(workload, seed))
      if plain is None or slow is None:
        return None
      level = measures.goal(plain)
      return measures.quotient(
        measures.ratio(plain, name, level),
        measures.ratio(slow, RAW, level, plain),
      )

    return shelf.effects(shelf.workloads(), shelf.seeds(SEEDS_OF_L), effect)

  names = list(averages.of_horizons(CADENCE, ['lawa']))
  best, effects = best_fixed({name: beats(name) for name in names})
  default = name_of('lawa', HORIZON)
  return [
    Part(
      text=f'{label(default)}: steps over those of Lookahead',
      unit='ratio',
      effects=beats(default),
      claimed=BELOW_ONE,
    ),
    Part(
      text=f'{label(best)}, the best single horizon: steps over those of '
      'Lookahead',
      unit='ratio',
      effects=effects,
      claimed=BELOW_ONE,
      decides=False,
    ),
    Part(
      text='NadamW without averaging: steps over those of Lookahead',
      unit='ratio',
      effects=beats(RAW),
      claimed=BELOW_ONE,
      decides=False,
    ),
  ]
