"""What a study of the choice among averages says: rows, files, statistics.

Steps to the target are fractions of T, so that workloads can be compared. A run
that never arrives is later than any that does: two candidates differ by

  x - y    if both arrive; by inf if only y does, by -inf if only x does,

and by nothing that is known if neither does, which is left out. A median over
an even number is the later of the two in the middle, which some run has. The
best fixed candidate in hindsight is, for each workload, learning rate and
schedule, the one with the lowest median over seeds; raw is one of them.
"""

import dataclasses
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab.core import curves, logs
from lab.studies import auto_figures

Row = dict[str, Any]
# A workload, a learning rate factor and a schedule.
Setting = tuple[str, float, str]
# By setting, candidate and seed; inf where the target was not reached.
Times = dict[Setting, dict[str, dict[int, float]]]

NADAMW = 'nadamw'
AUTO = 'auto'
# What one would do without it.
DEFAULT = 'ema 0.01'
TUNED = (1.0, 'cosine')
# The numbers to reach, fractions of T.
NEAR_BEST = 0.02
BEHIND_NADAMW = 0.01


def rows_of(results: Iterable[Mapping[str, Any]]) -> list[Row]:
  """A row for each run and candidate; ratios are to the same run's raw weights.

  That is, to NadamW on the same batches; None where one did not arrive.
  """
  rows = []
  for result in results:
    higher, choices = result['higher_is_better'], result['choices']
    reached = {}
    for name, values in result['curves'].items():
      curve = [curves.Point(int(step), 0.0, value) for step, value in values]
      point = curves.first_at_target(curve, result['target'], higher)
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
          'candidate': NADAMW if name == 'raw' else name,
          'steps_to_target': steps,
          'ratio_to_nadamw': steps / plain if steps and plain else None,
          'budget_steps': result['budget_steps'],
          'target': result['target'],
          'reached_at_first_look': early,
          # The first evaluation of all is after as many steps as come between.
          'evaluated_every': choices[AUTO][0][0],
          'share_of_raw': _share_of_raw(choices.get(name)),
        }
      )
  return rows


def _share_of_raw(choices: Sequence[Sequence[int]] | None) -> float | None:
  """Fraction of a run's choices that are the raw weights; None without any."""
  if choices is None:
    return None
  # Below 0: no candidate had a finite loss.
  return sum(which <= 0 for _, which in choices) / len(choices)


def choices_of(results: Iterable[Mapping[str, Any]]) -> list[Row]:
  """What was chosen when: [step, index into the candidates] of each chooser.

  The index is -1 where no candidate had a finite loss: the raw weights.
  """
  keys = ('workload', 'seed', 'learning_rate_factor', 'schedule')
  return [
    {key: result[key] for key in (*keys, 'budget_steps')}
    | {
      'candidates': [n for n in result['curves'] if n not in result['choices']],
      'choices': result['choices'],
    }
    for result in results
  ]


def write(results: Sequence[Mapping[str, Any]], output_dir: str) -> None:
  """Write auto.json, choices.json, auto.png and choices.png."""
  order = ('workload', 'schedule', 'learning_rate_factor', 'seed')
  ordered = sorted(results, key=lambda r: [r[key] for key in order])
  rows, choices = rows_of(ordered), choices_of(ordered)
  os.makedirs(output_dir, exist_ok=True)
  for name, content in (('auto.json', rows), ('choices.json', choices)):
    logs.write_rows(os.path.join(output_dir, name), content)
  study = Study.of(rows)
  curves = {
    label_of(name): {s: study.median(s, name) for s in study.times}
    for name in (NADAMW, DEFAULT, AUTO)
  }
  curves['best fixed candidate in hindsight'] = {
    setting: study.best_fixed(setting) for setting in study.times
  }
  auto_figures.draw_steps(curves, os.path.join(output_dir, 'auto.png'))
  auto_figures.draw_choices(choices, os.path.join(output_dir, 'choices.png'))


def label_of(name: str) -> str:
  """A candidate's name in tables.

  >>> label_of('ema 0.01'), label_of('polynomial 4'), label_of('nadamw')
  ('EMA 1 %', 'polynomial 4', 'NadamW')
  """
  kind, _, argument = name.partition(' ')
  if kind in ('ema', 'lawa'):
    return f'{kind.upper()} {100 * float(argument):g} %'
  return 'NadamW' if name == NADAMW else name


def middle(values: Iterable[float]) -> float:
  """Median; of an even number, the later one.

  >>> middle([3, 1, 2, 4])
  3
  """
  return statistics.median_high(values)


def difference(x: float, y: float) -> float | None:
  """How much later x is than y; None if neither arrives.

  >>> difference(0.75, math.inf), difference(math.inf, math.inf)
  (-inf, None)
  """
  if math.isinf(x) and math.isinf(y):
    return None
  return round(x - y, 9)


@dataclasses.dataclass(frozen=True)
class Study:
  """Times to target of finished runs.

  Args:
    times: by setting, candidate and seed, fractions of T.
    fixed: names of the candidates that are no choice.
    first_look: by setting, fraction of T at which its curves begin, where a
      candidate had arrived by then.
  """

  times: Times
  fixed: list[str]
  first_look: dict[Setting, float]

  @classmethod
  def of(cls, rows: Iterable[Row]) -> 'Study':
    """From the rows of auto.json."""
    times: Times = {}
    early: dict[Setting, float] = {}
    fixed: list[str] = []
    for row in rows:
      setting = (row['workload'], row['learning_rate_factor'], row['schedule'])
      steps, name = row['steps_to_target'], row['candidate']
      time = steps / row['budget_steps'] if steps else math.inf
      times.setdefault(setting, {}).setdefault(name, {})[row['seed']] = time
      if row['reached_at_first_look']:
        early[setting] = time
      if row['share_of_raw'] is None and name not in fixed:
        fixed.append(name)
    return cls(times, fixed, early)

  @property
  def choosers(self) -> list[str]:
    """Names of what chooses at every setting: the submission comes first."""
    every = list(self.times.values())
    names = [name for name in every[0] if name not in self.fixed]
    return [name for name in names if all(name in times for times in every)]

  @property
  def workloads(self) -> list[str]:
    """Names, in order."""
    return sorted({setting[0] for setting in self.times})

  def settings(self, workload: str | None = None) -> list[Setting]:
    """Settings of a workload, or of all."""
    return [s for s in self.times if workload in (None, s[0])]

  def median(self, setting: Setting, name: str) -> float:
    """Over seeds."""
    return middle(self.times[setting][name].values())

  def best_fixed(self, setting: Setting) -> float:
    """The lowest median of a fixed candidate."""
    return min(self.median(setting, name) for name in self.fixed)

  def gaps(self, name: str, workload: str | None = None) -> list[float]:
    """To the best fixed candidate in hindsight, at every setting."""
    gaps = [
      difference(self.median(s, name), self.best_fixed(s))
      for s in self.settings(workload)
    ]
    return [gap for gap in gaps if gap is not None]

  def differences(
    self, name: str, other: str, workload: str | None = None
  ) -> list[float]:
    """How much later than another candidate, in every run."""
    found = [
      difference(time, self.times[setting][other][seed])
      for setting in self.settings(workload)
      for seed, time in self.times[setting][name].items()
    ]
    return [value for value in found if value is not None]

  def arrivals(self, name: str, workload: str | None = None) -> tuple[int, int]:
    """Runs that reached the target, and all."""
    times = [
      time
      for setting in self.settings(workload)
      for time in self.times[setting][name].values()
    ]
    return sum(map(math.isfinite, times)), len(times)
