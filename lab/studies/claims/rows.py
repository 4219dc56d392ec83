"""Claims as rows of claims.json, and back."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab.studies.claims import statistics
from lab.studies.claims.claim import CLAIMS, Claim, Part, named
from lab.studies.claims.shelf import NotMeasured, Shelf
from lab.studies.parts.frame import Row

COMMAND = 'python -m lab.studies claims --only={}'


def rows_of(claims: Iterable[Claim], shelf: Shelf) -> list[Row]:
  """Measure claims on the finished runs: a row each."""
  return [_measured(claim, shelf) for claim in claims]


def unmeasured() -> list[Row]:
  """Rows of all claims before any run."""
  return [
    _row(claim, [], 'Its runs are not made yet.') for claim in named(CLAIMS)
  ]


def _measured(claim: Claim, shelf: Shelf) -> Row:
  misses = shelf.misses
  try:
    parts = [_part_row(part) for part in claim.measure(shelf)]
  except NotMeasured as error:
    return _row(claim, [], str(error))
  unknown = [p['text'] for p in parts if p['decides'] and not p['runs']]
  reason = None
  if unknown:
    reason = f'Its runs give no value for: {"; ".join(unknown)}.'
  if shelf.misses > misses:
    reason = 'Some of its runs are not finished.'
  return _row(claim, parts, reason)


def _row(claim: Claim, parts: list[Row], reason: str | None) -> Row:
  """Make the row of a claim.

  Args:
    claim: what was measured.
    parts: their rows.
    reason: why there is no verdict; None if there is one.
  """
  own = [part for part in parts if part['decides']]
  found = statistics.combined(part['verdict'] for part in own)
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
    'seeds': max((part['seeds'] for part in own), default=0),
    'workloads': sorted({w for part in own for w in part['by_workload']}),
    'command': COMMAND.format(claim.name),
    'parts': parts,
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
  """New rows, and the old ones of claims without a new measurement."""
  known = {row['claim'] for row in old}
  new = [
    row
    for row in new
    if row['claim'] not in known or row['verdict'] != statistics.NOT_MEASURED
  ]
  names = {row['claim'] for row in new}
  rows = [*new, *(row for row in old if row['claim'] not in names)]
  return sorted(rows, key=lambda row: (len(row['claim']), row['claim']))


def deciding(row: Mapping[str, Any]) -> list[Row]:
  """The parts of a claim on which its verdict depends."""
  return [part for part in row['parts'] if part['decides']]
