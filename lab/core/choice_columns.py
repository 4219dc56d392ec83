"""Columns in which a submission logs its choice among averages.

`averaging_choice` holds the index of the chosen candidate and
`probe_loss/<candidate>` the loss of each candidate on the probe.
"""

from collections.abc import Mapping, Sequence
from typing import Any

CHOICE = 'averaging_choice'
LOSS = 'probe_loss/'
# Name of a negative index: no candidate had a finite loss.
NOTHING_FINITE = 'raw (no finite loss)'


def name_of(index: float, names: Sequence[str]) -> str:
  """Name of the candidate that an index stands for.

  >>> name_of(1.0, ['raw', 'ema 0.01'])
  'ema 0.01'
  """
  return NOTHING_FINITE if index < 0 else names[int(index)]


def chosen(row: Mapping[str, Any]) -> str | None:
  """Name of the candidate that a logged row chose; None without a choice."""
  if CHOICE not in row:
    return None
  names = [key[len(LOSS) :] for key in row if key.startswith(LOSS)]
  return name_of(row[CHOICE], names)
