"""The gain of averaging as a function of the gradient's noise.

The papers leave it open: batch size, learning rate and length of training each
change the noise that is left at the end of a schedule.
"""

from collections.abc import Callable, Mapping

from lab.studies.claims import measures, runs
from lab.studies.claims.averages import STANDARD, label, name_of
from lab.studies.claims.claim import POSITIVE, Part, best_fixed, register
from lab.studies.claims.runs import Run
from lab.studies.claims.shelf import Shelf
from lab.studies.claims.statistics import Effects

SEEDS = 3
WORKLOADS = ('denoise_unet', 'stdlib_lm')

AVERAGES = tuple(n for n in STANDARD if n.split()[0] in ('ema', 'lawa'))
DEFAULT = name_of('ema', 0.01)
BEST = 'best'

BATCH, RATE, LENGTH = 'batch size', 'learning rate', 'length of training'
# Axis to its settings and the run at each of them.
AXES: Mapping[
  str, tuple[tuple[float, ...], Callable[[str, int, float], Run]]
] = {
  BATCH: ((0.25, 0.5, 1.0, 2.0, 4.0), runs.of_batch),
  RATE: ((0.25, 0.5, 1.0, 2.0, 4.0), runs.at_rate),
  LENGTH: ((0.5, 1.0, 2.0, 4.0), runs.of_length),
}
# Ends of an axis at which there is more and less noise.
MORE_NOISE = {BATCH: (0.25, 4.0), RATE: (4.0, 0.25)}


def _saved(
  shelf: Shelf, run: Callable[[str, int, float], Run], factor: float, name: str
) -> dict[tuple[str, int], float | None]:
  """Share of the raw weights' steps to their level at 0.75 T that is saved."""

  def effect(workload: str, seed: int) -> float | None:
    result = shelf.get(run(workload, seed, factor))
    if result is None:
      return None
    level = measures.level_at(result, measures.LEVEL_AT)
    found = measures.ratio(result, name, level)
    return None if found is None else 1.0 - found

  # A study on other workloads, such as the quick one, has a curve of those.
  workloads = shelf.workloads(*WORKLOADS)
  return shelf.effects(workloads, shelf.seeds(SEEDS), effect)


@register(
  name='noise',
  text='Averaging saves more steps where the gradient is noisier: at smaller '
  'batches and higher learning rates',
  paper=None,
  where='',
)
def curve(shelf: Shelf) -> list[Part]:
  """Measure the share of the raw weights' steps to their own level at three
  quarters of T that the average saves: at a fixed number of examples with other
  batch sizes, at other learning rates, and in shorter and longer runs. One
  factor differs from the tuned run, the rest of the point stays. The best
  average of a setting is the one with the best median over its runs.
  """
  parts, best = [], {}
  for axis, (factors, run) in AXES.items():
    for factor in factors:
      found: dict[str, Effects] = {
        name: _saved(shelf, run, factor, name) for name in AVERAGES
      }
      chosen, effects = best_fixed(found, lowest=False)
      best[axis, factor] = effects
      for name, shown, own in (
        (DEFAULT, DEFAULT, found[DEFAULT]),
        (BEST, chosen, effects),
      ):
        parts.append(
          Part(
            text=f'{axis} x{factor:g}, {label(shown)}'
            + (', the best average' if name == BEST else ''),
            unit='fraction',
            effects=own,
            claimed=POSITIVE,
            decides=False,
            setting={'axis': axis, 'factor': factor, 'average': name},
          )
        )
  for axis, (more, less) in MORE_NOISE.items():
    low = best[axis, less]
    parts.append(
      Part(
        text=f'{axis}: saved at x{more:g} minus saved at x{less:g}, best '
        'averages',
        unit='fraction',
        effects={
          key: measures.difference(value, low[key])
          for key, value in best[axis, more].items()
        },
        claimed=POSITIVE,
      )
    )
  return parts
