"""Notes at the end of a report: deviations from the ruleset, conversions."""

import math
from collections.abc import Sequence

import pandas as pd

from lab.report import scores, time_to_target
from lab.report.log_files import Trial
from lab.report.targets import Targets

# Trials of a study and studies that the competition asks for.
TRIALS = {'self': 1, 'external': 5}
STUDIES = 3


def lines(
  studies: pd.DataFrame,
  medians: pd.DataFrame,
  ratios: pd.DataFrame,
  trials: Sequence[Trial],
  targets: Targets,
  ruleset: str,
) -> list[str]:
  """List what a strict scoring would refuse, and what has been converted.

  Args:
    studies: From `time_to_target.of_studies`.
    medians: From `time_to_target.of_submissions`.
    ratios: From `scores.ratios`, with the held-out workloads.
    trials: Trials read.
    targets: Goals and budgets.
    ruleset: self or external.
  """
  notes = []
  for submission, group in studies.groupby('submission', sort=True):
    name = str(submission)
    notes += _incomplete(name, group, targets, ruleset)
    notes += _late(name, medians, targets, ruleset)
  return notes + _held_out(medians, ratios, targets) + _converted(trials)


def _incomplete(
  submission: str, studies: pd.DataFrame, targets: Targets, ruleset: str
) -> list[str]:
  """Missing workloads, studies and trials of a submission."""
  notes = []
  counts = studies.groupby('workload', sort=True).size()
  absent = [name for name in targets.base_workloads if name not in counts]
  if absent:
    notes.append(f'{submission}: no logs of {", ".join(absent)}.')
  for count in sorted(n for n in set(counts) if n < STUDIES):
    workloads = ', '.join(counts.index[counts == count])
    notes.append(f'{submission}: {count} of {STUDIES} studies of {workloads}.')
  expected = TRIALS[ruleset]
  wrong = studies['trials'][studies['trials'] != expected]
  if len(wrong):
    found = ', '.join(str(n) for n in sorted(set(wrong)))
    notes.append(
      f'{submission}: {found} instead of {expected} trials in {len(wrong)} of '
      f'{len(studies)} studies; the {ruleset} ruleset asks for {expected}.'
    )
  return notes


def _late(
  submission: str, medians: pd.DataFrame, targets: Targets, ruleset: str
) -> list[str]:
  """Targets that a submission reached after the ruleset's time budget."""
  late = []
  for row in medians[medians['submission'] == submission].itertuples():
    budget = targets.budget_seconds(str(row.workload), ruleset)
    if budget is not None and budget < float(row.seconds) < math.inf:
      late.append(str(row.workload))
  if not late:
    return []
  return [
    f'{submission}: the target of {", ".join(late)} was reached after the time '
    f'budget of the {ruleset} ruleset; it counts, as in the published scoring.'
  ]


def _held_out(
  medians: pd.DataFrame, ratios: pd.DataFrame, targets: Targets
) -> list[str]:
  """Effects of the held-out workloads on the score, and those without logs."""
  times = time_to_target.matrix(medians)
  notes = []
  alone = scores.ratios(times, targets.base_workloads)
  lost = (alone < math.inf) & ~(ratios < math.inf)
  for submission, base in lost.stack()[lambda cells: cells].index:
    variants = [n for n, of in targets.held_out.items() if of == base]
    notes.append(
      f'{submission}: {base} counts as missed, since held-out '
      f'{", ".join(variants)} was missed or took more than '
      f'{scores.MAX_TAU:.0f} x the fastest.'
    )
  absent = [name for name in targets.held_out if name not in times]
  if absent:
    notes.append(
      f'No logs of held-out {", ".join(absent)}: the score is without them.'
    )
  return notes


def _converted(trials: Sequence[Trial]) -> list[str]:
  """Submissions whose logs count calls of several steps."""
  calls: dict[str, dict[int, set[str]]] = {}
  for trial in trials:
    if trial.steps_per_call > 1:
      found = calls.setdefault(trial.submission, {})
      found.setdefault(trial.steps_per_call, set()).add(trial.workload)
  return [
    f'{submission}: a step of the log is several optimizer steps '
    '(lawa_inner_steps_frac): '
    + '; '.join(
      f'{count} on {", ".join(sorted(names))}'
      for count, names in sorted(found.items())
    )
    + '.'
    for submission, found in sorted(calls.items())
  ]
