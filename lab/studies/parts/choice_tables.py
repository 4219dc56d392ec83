"""Tables of the choice among averages, from the rows of auto.json.

A setting is a workload, a learning rate and a schedule. Times are fractions of
T, infinite where a run never reaches the target. The difference of two times is
infinite if one of two candidates arrives, and left out if neither does. The
best fixed candidate in hindsight is, at each setting, the one with the lowest
median over seeds; the raw weights are one of them.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lab.studies.parts import frame, tables
from lab.studies.parts.choosers import AUTO
from lab.studies.parts.frame import Row

NADAMW = 'nadamw'
# The average that is used without a choice.
DEFAULT = 'ema 0.01'
TUNED = (1.0, 'cosine')
# Numbers to reach, fractions of T.
NEAR_BEST = 0.02
BEHIND_NADAMW = 0.01
SETTING = ['workload', 'learning_rate_factor', 'schedule']


def label_of(name: str) -> str:
  """A candidate's name in tables.

  >>> label_of('ema 0.01'), label_of('polynomial 4'), label_of('nadamw')
  ('EMA 1 %', 'polynomial 4', 'NadamW')
  """
  kind, _, argument = name.partition(' ')
  if kind in ('ema', 'lawa'):
    return f'{kind.upper()} {tables.percent(float(argument))}'
  return 'NadamW' if name == NADAMW else name


class Times:
  """Times to target, as frames.

  Attributes:
    data: the rows, with the column `time`.
    fixed: names of the candidates that choose nothing.
    runs: times by setting and seed, a column for each candidate.
    medians: medians over seeds by setting, a column for each candidate.
    best_fixed: the lowest median of a fixed candidate, by setting.
  """

  def __init__(self, rows: Sequence[Row]) -> None:
    self.data = frame.read(rows)
    self.data['time'] = self.data['steps_to_target'] / self.data['budget_steps']
    chooses = self.data['share_of_raw'].notna()
    self.names = list(dict.fromkeys(self.data['candidate']))
    fixed = set(self.data[~chooses]['candidate'])
    self.fixed = [name for name in self.names if name in fixed]
    times = self.data.set_index([*SETTING, 'seed', 'candidate'])['time']
    self.runs = times.unstack('candidate')
    self.medians = (
      times.groupby([*SETTING, 'candidate']).agg(frame.median).unstack()
    )
    self.best_fixed = self.medians[self.fixed].min(axis=1)

  @property
  def choosers(self) -> list[str]:
    """Names of the rules that choose at every setting."""
    return [
      name
      for name in self.names
      if name not in self.fixed and self.medians[name].notna().all()
    ]

  @property
  def workloads(self) -> list[str]:
    """Names in order."""
    return sorted(set(self.data['workload']))

  @property
  def tuned(self) -> list[tuple[str, float, str]]:
    """Settings with the tuned learning rate and a cosine to zero."""
    return [setting for setting in self.medians.index if setting[1:] == TUNED]

  def gaps(self, name: str) -> pd.Series:
    """Difference to the best fixed candidate, at every setting."""
    return _difference(self.medians[name], self.best_fixed)

  def behind(self, name: str, other: str) -> pd.Series:
    """Difference to another candidate, in every run."""
    return _difference(self.runs[name], self.runs[other])

  def cell(self, setting: tuple[str, float, str], name: str) -> str:
    """Median over seeds; the number of seeds that arrived, if not all."""
    # A rule that does not choose at this setting has no times.
    times = self.runs.loc[setting].get(name, pd.Series(dtype=float)).dropna()
    if times.empty:
      return tables.UNKNOWN
    median = frame.median(times)
    text = tables.number(median, missing=tables.NEVER)
    own = (self.data[SETTING] == list(setting)).all(axis=1)
    early = self.data[own & self.data['reached_at_first_look'].astype(bool)]
    if median in set(early['time']):
      text = f'≤ {text}'
    arrived = int((times < math.inf).sum())
    if arrived < len(times):
      text += f' ({arrived} of {len(times)})'
    return text

  def share_of_raw(self, workload: str, name: str) -> str:
    """Mean share of the raw weights among a rule's choices, when tuned."""
    data = self.data[
      (self.data['workload'] == workload)
      & (self.data['candidate'] == name)
      & (self.data['learning_rate_factor'] == TUNED[0])
      & (self.data['schedule'] == TUNED[1])
    ]
    share = data['share_of_raw'].mean()
    return '' if math.isnan(share) else f' (raw {100 * share:.0f} %)'

  def seeds(self, setting: tuple[str, float, str]) -> str:
    """Number of seeds at a setting."""
    return str(int(self.runs.loc[setting][AUTO].notna().sum()))


def _difference(left: pd.Series, right: pd.Series) -> pd.Series:
  """Delays in pairs of runs, without the pairs in which neither arrives."""
  return (left - right).dropna().round(9)


def _within(values: pd.Series, limit: float) -> int:
  return int((values <= limit + tables.ROUNDING).sum())


def _largest(values: pd.Series) -> float | None:
  return values.max() if len(values) else None


def _median(values: pd.Series) -> float | None:
  return frame.median(values) if len(values) else None


def extent(rows: Sequence[Row]) -> str:
  """The number of runs, and the resolution of their times."""
  times = Times(rows)
  seeds = times.runs[AUTO].groupby(SETTING).count()
  least, most = seeds.min(), seeds.max()
  number = f'{most}' if least == most else f'{least} to {most}'
  every = times.data['evaluated_every'] / times.data['budget_steps']
  grid = ' or '.join(f'{value:g}' for value in sorted(set(every)))
  return (
    f'{seeds.sum()} runs at {len(seeds)} settings (a workload, a learning rate '
    f'and a schedule), each with {number} seed{"s" * bool(most > 1)}. '
    f'Evaluations come every {grid} of T; differences are multiples of it.'
  )


def _verdict(value: float | None, limit: float) -> str:
  if value is None:
    return 'unknown'
  return 'reached' if value <= limit + tables.ROUNDING else '**missed**'


def verdicts(rows: Sequence[Row]) -> str:
  """Markdown: the numbers to reach, and those that were measured."""
  times = Times(rows)
  gaps = times.gaps(AUTO)
  tuned = gaps[gaps.index.isin(times.tuned)]
  where = f' ({tuned.idxmax()[0]})' if len(tuned) else ''
  late, ahead = times.behind(AUTO, NADAMW), times.behind(AUTO, DEFAULT)
  earlier = int((ahead < -tables.ROUNDING).sum())
  later = int((ahead > tables.ROUNDING).sum())
  counts = f'earlier {earlier}, same {len(ahead) - earlier - later}'
  lines = [
    [
      f'within {NEAR_BEST:g} of the best fixed candidate in hindsight on each '
      'workload, tuned learning rate, cosine, median over seeds',
      f'at most {tables.signed(_largest(tuned))}{where}',
      _verdict(_largest(tuned), NEAR_BEST),
    ],
    [
      'the same at every learning rate and schedule',
      f'at most {tables.signed(_largest(gaps))}; within it at '
      f'{_within(gaps, NEAR_BEST)} of {len(gaps)} settings where any arrives',
      _verdict(_largest(gaps), NEAR_BEST),
    ],
    [
      f'never more than {BEHIND_NADAMW:g} later than NadamW',
      f'at most {tables.signed(_largest(late))}; within it in '
      f'{_within(late, BEHIND_NADAMW)} of {len(late)} runs where either '
      'arrives',
      _verdict(_largest(late), BEHIND_NADAMW),
    ],
    [
      f'ahead of {label_of(DEFAULT)} in the median over the runs where either '
      'arrives',
      f'{tables.signed(_median(ahead))}; {counts}, later {later}',
      # A tie is a miss.
      _verdict(_median(ahead), -2 * tables.ROUNDING),
    ],
  ]
  return tables.markdown(['to reach, fractions of T', 'found', ''], lines)


def steps(rows: Sequence[Row]) -> str:
  """Markdown: times at the tuned learning rate with a cosine, by workload."""
  times = Times(rows)
  names = [*times.fixed, AUTO]
  gaps = times.gaps(AUTO)
  lines = [
    [
      setting[0],
      times.seeds(setting),
      *(times.cell(setting, name) for name in names),
      tables.signed(gaps.get(setting)),
    ]
    for setting in times.tuned
  ]
  header = ['workload', 'seeds', *map(label_of, names), 'auto - best fixed']
  return tables.markdown(header, lines)


def gaps(rows: Sequence[Row]) -> str:
  """Markdown: times behind the best fixed candidate, over the settings.

  A cell has the median, the largest, and the number of settings within
  NEAR_BEST.
  """
  times = Times(rows)
  lines = []
  for name in [*times.fixed, *times.choosers]:
    found = times.gaps(name)
    groups: list[Any] = [
      found[found.index.get_level_values('workload') == workload]
      for workload in times.workloads
    ]
    cells = [
      f'{tables.signed(_median(own))} / {tables.signed(_largest(own))} / '
      f'{_within(own, NEAR_BEST)} of {len(own)}'
      if len(own)
      else tables.UNKNOWN
      for own in [*groups, found]
    ]
    lines.append([label_of(name), *cells])
  return tables.markdown(['candidate', *times.workloads, 'all'], lines)


def ablation(rows: Sequence[Row]) -> str:
  """Markdown: other rules at the tuned setting, and how often raw is chosen."""
  times = Times(rows)
  names = [name for name in times.names if name not in times.fixed]
  lines = [
    [
      setting[0],
      times.seeds(setting),
      *(
        times.cell(setting, name) + times.share_of_raw(setting[0], name)
        for name in names
      ),
      times.cell(setting, NADAMW),
    ]
    for setting in times.tuned
  ]
  header = ['workload', 'seeds', *names, label_of(NADAMW)]
  return tables.markdown(header, lines)
