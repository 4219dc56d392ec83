"""Claims as rows of claims.json, and back."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab.studies.claims import statistics
from lab.studies.claims.claim import Claim, Part
from lab.studies.claims.shelf import NotMeasured, Shelf
from lab.studies.parts.frame import Row

COMMAND = 'python -m lab.studies claims --only={}'


def rows_of(claims: Iterable[Claim], shelf: Shelf) -> list[Row]:
  """Measure claims on the finished runs: a row each."""
  return [_row(claim, shelf) for claim in claims]


def _row(claim: Claim, shelf: Shelf) -> Row:
  reason = None
  try:
    parts = claim.measure(shelf)
  except NotMeasured as error:
    parts, reason = [], str(error)
  rows = [_part_row(part) for part in parts]
  deciding = [row for row in rows if row['decides']]
  missing = [row['text'] for row in deciding if not row['runs']]
  if parts and missing:
    reason = 'Some of its runs are not finished.'
  found = statistics.combined(row['verdict'] for row in deciding)
  return {
    'claim': claim.name,
    'text': claim.text,
    'source': None if claim.paper is None else claim.paper.cite,
    'url': None if claim.paper is None else claim.paper.url,
    'where': claim.where,
    'figure': claim.figure,
    'how': claim.how,
    'verdict': statistics.NOT_MEASURED if reason else found,
    'reason': reason,
    'seeds': max((row['seeds'] for row in deciding), default=0),
    'workloads': sorted({w for row in deciding for w in row['by_workload']}),
    'command': COMMAND.format(claim.name),
    'parts': rows,
  }


def _part_row(part: Part) -> Row:
  groups = statistics.by_workload(part.effects)
  found = statistics.interval(part.effects)
  low, high = part.claimed
  if part.on_each:
    verdict = statistics.verdict_on_each(part.effects, part.claimed)
  else:
    verdict = statistics.verdict(found, part.claimed)
  known = sum(map(len, groups.values()))
  return {
    'text': part.text,
    'unit': part.unit,
    'median': _plain(found.median),
    'low': _plain(found.low),
    'high': _plain(found.high),
    'claimed': [_plain(low), _plain(high)],
    'on_each': part.on_each,
    'decides': part.decides,
    'verdict': verdict if known else statistics.NOT_MEASURED,
    'seeds': max(map(len, groups.values()), default=0),
    'runs': known,
    'without_value': len(part.effects) - known,
    'by_workload': {
      workload: statistics.median(
        {(workload, i): value for i, value in enumerate(values)}
      )
      for workload, values in groups.items()
    },
    'effects': [
      [workload, seed, None if value is None else _plain(value)]
      for (workload, seed), value in part.effects.items()
    ],
    **part.setting,
  }


def _plain(value: float) -> float | None:
  """A number that JSON has, of nine digits; None where there is none."""
  return float(f'{value:.9g}') if math.isfinite(value) else None


def merged(new: Sequence[Row], old: Sequence[Row]) -> list[Row]:
  """New rows, and the old ones of claims that are not among the new."""
  names = {row['claim'] for row in new}
  rows = [*new, *(row for row in old if row['claim'] not in names)]
  return sorted(rows, key=lambda row: (len(row['claim']), row['claim']))


def deciding(row: Mapping[str, Any]) -> list[Row]:
  """The parts of a claim on which its verdict depends."""
  return [part for part in row['parts'] if part['decides']]
