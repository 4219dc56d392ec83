"""Trials of a search: which are trained again, which win, and their table."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab.studies.parts import search, tables
from lab.studies.parts.training import Result
from lab.studies.parts.tuned import kind_of

FINALISTS = 4


def best_of(result: Result) -> dict[str, float | None]:
  """Return the best finite value of each candidate of a trial."""
  pick = max if result['higher_is_better'] else min
  return {
    name: pick((v for *_, v in curve if math.isfinite(v)), default=None)
    for name, curve in result['curves'].items()
  }


def _kind(best: Mapping[str, float | None], kind: str) -> list[float]:
  """Return the values of the candidates of one kind that have not diverged."""
  return [
    value
    for name, value in best.items()
    if kind_of(name) == kind and value is not None
  ]


def finalists(trials: Sequence[Result]) -> list[int]:
  """Return the numbers of the trials among the best four of some kind.

  A trial that was stopped is left out.
  """
  chosen: set[int] = set()
  for kind in dict.fromkeys(map(kind_of, trials[0]['curves'])):
    values = {
      number: (max if trial['higher_is_better'] else min)(found)
      for number, trial in enumerate(trials)
      if trial['stopped'] is None and (found := _kind(best_of(trial), kind))
    }
    sign = -1 if trials[0]['higher_is_better'] else 1
    order = sorted(values, key=lambda number: (sign * values[number], number))
    chosen |= set(order[:FINALISTS])
  return sorted(chosen)


def winners(
  finals: Iterable[tuple[int | str, Mapping[str, Any], Sequence[Result]]],
) -> dict[str, dict[str, Any]]:
  """Find, for each kind, the point and average with the best mean over seeds.

  Args:
    finals: number of a trial or 'incumbent', its point, and its results.
  """
  found: dict[str, dict[str, Any]] = {}
  for number, point, results in finals:
    higher = results[0]['higher_is_better']
    values = [best_of(result) for result in results]
    for name in values[0]:
      own = [best[name] for best in values]
      if None in own:
        continue
      mean = statistics.fmean(own)  # type: ignore[arg-type]
      kind = kind_of(name)
      if kind not in found or search.is_better(
        mean, found[kind]['mean'], higher
      ):
        found[kind] = {
          'average': name,
          'mean': mean,
          'values': own,
          'trial': number,
          'point': dict(point),
        }
  return found


def row_of(number: int | str, point: Mapping[str, Any], result: Result) -> Any:
  """Make the row of a trial, with curves of seven digits."""
  curves = {
    name: [float(f'{value:.7g}') for *_, value in curve]
    for name, curve in result['curves'].items()
  }
  first = next(iter(result['curves'].values()))
  return {
    'trial': number,
    'seed': result['seed'],
    'point': dict(point),
    'budget_steps': result['budget_steps'],
    'stopped': result['stopped'],
    'best': best_of(result),
    'steps': [int(step) for step, *_ in first],
    'curves': {
      name: [v if math.isfinite(v) else None for v in values]
      for name, values in curves.items()
    },
  }


def table(record: Mapping[str, Any]) -> str:
  """Make the table of the winners in search.json, in Markdown."""
  keys = list(record['ranges'])
  lines = [
    [
      winner['average'],
      f'{winner["mean"]:.6g}',
      ', '.join(f'{value:.6g}' for value in winner['values']),
      str(winner['trial']),
      *(f'{winner["point"][key]:.4g}' for key in keys),
    ]
    for winner in record['winners'].values()
  ]
  header = ['average', 'mean', 'by seed', 'trial', *keys]
  return tables.markdown(header, lines)
