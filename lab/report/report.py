"""All numbers of a report, from trials to the content of report.json."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lab.core.errors import InputError
from lab.report import (
  hyperparameters,
  intervals,
  notes,
  savings,
  scores,
  time_to_target,
  what_if,
)
from lab.report import relative as relative_times
from lab.report.log_files import Trial
from lab.report.targets import Targets

RULESETS = ('self', 'external')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """The options of a report.

  Args:
    ruleset: self or external; sets the time budget and the trials expected.
    baseline: Submission that savings are relative to; None leaves them out.
    missed: What a missed target costs, one of `savings.MISSED_RULES`.
    fastest: What the trials of a study compare by, one of
      `time_to_target.FASTEST`.
    gpus: Devices of all runs; None takes those of the logs or of the benchmark.
    what_if: Changes, as `what_if.parse` reads them.
  """

  ruleset: str = 'external'
  baseline: str | None = None
  missed: str = 'budget'
  fastest: str = 'seconds'
  gpus: int | None = None
  what_if: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """Tables of a report; times are infinite where a target was missed.

  Args:
    options: What the user chose.
    targets: Goals and budgets.
    runs: Trials read, for the curves.
    trials: A row per trial.
    studies: A row per study: its fastest trial.
    medians: A row per submission and workload: median over studies.
    best: A row per submission and workload: best validation metric.
    ratios: Time relative to the fastest, submissions by base workloads.
    profiles: Performance profiles, submissions by tau.
    scores: A row per submission: score, interval, targets reached, speed-up.
    gpu_hours: A row per submission and workload.
    savings: A row per submission; empty without a baseline.
    relative: Ratios to the baseline by workload; empty without one.
    sweeps: Trials by hyperparameter.
    fits: Fits by hyperparameter.
    what_if: Outcomes of the changes that the user asked for.
    values: Gain by fewer steps and by one more workload.
    notes: Deviations from the ruleset, conversions.
    problems: What could not be read.
  """

  options: Options
  targets: Targets
  runs: Sequence[Trial]
  trials: pd.DataFrame
  studies: pd.DataFrame
  medians: pd.DataFrame
  best: pd.DataFrame
  ratios: pd.DataFrame
  profiles: pd.DataFrame
  scores: pd.DataFrame
  gpu_hours: pd.DataFrame
  savings: pd.DataFrame
  relative: pd.DataFrame
  sweeps: dict[str, pd.DataFrame]
  fits: dict[str, list[dict[str, Any]]]
  what_if: list[dict[str, Any]]
  values: list[dict[str, Any]]
  notes: list[str]
  problems: list[str]

  @property
  def submissions(self) -> list[str]:
    """Names of the submissions, the highest score first."""
    return self.scores['submission'].tolist()

  @property
  def workloads(self) -> list[str]:
    """Workloads with logs: base workloads in their order, then others."""
    present = set(self.medians['workload'])
    base = [name for name in self.targets.base_workloads if name in present]
    return base + sorted(present - set(base))

  def as_json(self) -> dict[str, Any]:
    """Content of report.json; null where infinite, missing or unknown."""
    rows = self._all_pairs()
    return {
      'scores': {
        row['submission']: row['score'] for row in _records(self.scores)
      },
      'time_to_target': rows,
      'ruleset': self.options.ruleset,
      'targets': {
        'source': self.targets.source,
        'version': self.targets.version,
        'base_workloads': list(self.targets.base_workloads),
        'held_out': dict(self.targets.held_out),
        'goals': [
          {'workload': name}
          | _plain_row(dataclasses.asdict(self.targets.goals[name]))
          for name in self.workloads
        ],
      },
      'score_intervals': _records(self.scores),
      'profiles': _long(self.profiles, 'tau', 'fraction'),
      'ratios': _long(self.ratios, 'workload', 'ratio'),
      'medians': _records(self.medians),
      'best_metric': _records(self.best),
      'studies': _records(self.studies),
      'trials': _records(self.trials),
      'gpu_hours': _records(self.gpu_hours),
      'baseline': self.options.baseline,
      'missed_rule': self.options.missed,
      'fastest_rule': self.options.fastest,
      'savings': _records(self.savings),
      'relative_to_baseline': _records(self.relative),
      'hyperparameters': {k: _records(v) for k, v in self.sweeps.items()},
      'fits': {k: list(map(_plain_row, v)) for k, v in self.fits.items()},
      'what_if': list(map(_plain_row, self.what_if)),
      'value_of_changes': list(map(_plain_row, self.values)),
      'notes': self.notes,
      'problems': self.problems,
    }

  def _all_pairs(self) -> list[dict[str, Any]]:
    """Every submission with every workload, also where there are no logs."""
    keys = ['submission', 'workload']
    base = list(self.targets.base_workloads)
    names = base + [n for n in self.workloads if n not in base]
    pairs = pd.MultiIndex.from_product([self.submissions, names], names=keys)
    columns = ['seconds', 'steps', 'fraction_of_budget']
    table = self.medians.set_index(keys)[columns].reindex(pairs)
    return _records(table.reset_index())


def build(
  trials: Sequence[Trial],
  targets: Targets,
  options: Options,
  problems: Sequence[str] = (),
) -> Report:
  """Compute a report.

  Raises:
    InputError: the baseline or a change names no submission of the logs.
  """
  goals, base = targets.goals, targets.base_workloads
  names = sorted({trial.submission for trial in trials})
  if options.baseline is not None and options.baseline not in names:
    raise InputError(
      f'Invalid baseline={options.baseline!r}. Must be among '
      f'{", ".join(names)}.'
    )
  changes = [
    what_if.parse(text, names, [*base, *targets.held_out])
    for text in options.what_if
  ]
  trial_rows = time_to_target.of_trials(trials, goals)
  if options.gpus is not None:
    trial_rows['gpus'] = options.gpus
  studies = time_to_target.of_studies(trial_rows, goals, options.fastest)
  medians = time_to_target.of_submissions(studies, goals)
  for column in ('seconds', 'steps'):
    interval = intervals.of_medians(studies, column)
    medians = medians.merge(interval, on=['submission', 'workload'])
  times = time_to_target.matrix(medians)
  budgets = {
    name: targets.budget_seconds(name, options.ruleset) for name in goals
  }
  # Logs without a held-out workload are scored without it, and a note says so.
  held_out = {n: b for n, b in targets.held_out.items() if n in times}
  ratios = scores.ratios(times, base, held_out)
  profiles = scores.profiles(ratios)
  hours = savings.gpu_hours(medians, trial_rows, budgets, targets.gpus)
  counted = hours[hours['workload'].isin(base)]
  saved, relative = pd.DataFrame(), pd.DataFrame()
  if options.baseline is not None:
    saved = savings.against(counted, studies, options.baseline, options.missed)
    relative = pd.DataFrame(
      relative_times.by_workload(medians, studies, options.baseline)
    )
  sweeps = {
    name: hyperparameters.points(trials, goals, name)
    for name in (*hyperparameters.NUMERIC, hyperparameters.SCHEDULE)
  }
  return Report(
    options=options,
    targets=targets,
    runs=trials,
    trials=trial_rows,
    studies=studies,
    medians=medians,
    best=time_to_target.best_values(trial_rows, goals),
    ratios=ratios,
    profiles=profiles,
    scores=_scores(
      profiles, ratios, studies, times, targets, options, budgets, held_out
    ),
    gpu_hours=hours,
    savings=saved,
    relative=relative,
    sweeps=sweeps,
    fits={
      name: hyperparameters.fits(sweeps[name])
      for name in hyperparameters.FITTED
    },
    what_if=[
      what_if.outcome(times, base, change, held_out) for change in changes
    ],
    values=what_if.value_of_changes(times, base, budgets, held_out),
    notes=notes.lines(
      studies, medians, ratios, trials, targets, options.ruleset
    ),
    problems=[*targets.invalid, *problems],
  )


def _scores(
  profiles: pd.DataFrame,
  ratios: pd.DataFrame,
  studies: pd.DataFrame,
  times: pd.DataFrame,
  targets: Targets,
  options: Options,
  budgets: dict[str, float | None],
  held_out: dict[str, str],
) -> pd.DataFrame:
  """Score, interval and targets reached, the highest score first."""
  base = list(targets.base_workloads)
  table = scores.integrate(profiles).rename('score').reset_index()
  spread = intervals.of_scores(studies, base, held_out)
  table = table.merge(spread, on='submission')
  reached = np.isfinite(times.reindex(columns=base)).sum(axis=1)
  table['reached'] = table['submission'].map(reached)
  counted = np.isfinite(ratios).sum(axis=1)
  table['counted'] = table['submission'].map(counted)
  table['workloads'] = len(base)
  counts = studies.groupby(['submission', 'workload']).size()
  table['fewest_studies'] = table['submission'].map(
    counts.groupby('submission').min()
  )
  if options.baseline is not None:
    speed = scores.speed_ups(times, options.baseline, base, budgets)
    table['relative_time'] = table['submission'].map(speed)
  return table.sort_values(
    ['score', 'submission'], ascending=[False, True], ignore_index=True
  )


def _plain(value: Any) -> Any:
  """A value that JSON can hold; None where it is infinite or missing."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, np.generic):
    value = value.item()
  if value is None or isinstance(value, str | bool | int):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  return None


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
  return {str(key): _plain(value) for key, value in row.items()}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
  return [_plain_row(row) for row in table.to_dict('records')]


def _long(table: pd.DataFrame, column: str, value: str) -> list[dict[str, Any]]:
  """Rows of a matrix with submissions as its index."""
  return [
    {'submission': name, column: _plain(key), value: _plain(number)}
    for name, row in table.iterrows()
    for key, number in row.items()
  ]
