"""The final metric, in standard deviations over seeds (claim f)."""

from lab.studies.claims import measures, runs
from lab.studies.claims.averages import label, name_of
from lab.studies.claims.claim import (
  AJROLDI,
  NOT_WORSE,
  POSITIVE,
  Part,
  register,
)
from lab.studies.claims.shelf import Shelf
from lab.studies.claims.speed import HORIZON, SCHEMES
from lab.studies.claims.statistics import Effects
from lab.studies.parts.training import Result

# Claim f is one of the first table; its seeds give the spread for all claims.
SPREAD_OF = 5


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
