"""Reads trials from the files that the benchmark and `lab.run` write.

A trial's folder holds eval_measurements.csv and, where the runner wrote them,
hparams.json, meta_data_0.json and profile.json. What cannot be read is listed,
and the rest is returned.
"""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab.core import logs
from lab.report.layout import Place, find, without_trials
from lab.report.targets import Goal

_STEP = 'global_step'
_SECONDS = ('score', 'accumulated_submission_time')
_TIMES = ('submission', 'eval', 'logging')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """One row of eval_measurements.csv.

  Args:
    step: Optimizer steps made.
    seconds: Billed seconds.
    value: Target metric on the validation set; NaN where it is missing.
  """

  step: float
  seconds: float
  value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
  """A trial with at least one evaluation.

  Args:
    submission: Name of the submission.
    study: Name of the study, such as study_0.
    workload: Name without the framework.
    framework: jax or pytorch.
    trial: Number of the trial.
    evaluations: In the order of the file; a resumed run may repeat steps.
    hyperparameters: From hparams.json; empty under self-tuning.
    gpus: Devices, from meta_data_0.json; None if unknown.
    evaluation_share: Of billed, evaluation and logging time; None if unknown.
    averaging_share: Averaging and swaps, as a share of the time in
      `update_params` and `prepare_for_eval`; None without a profile.json.
    steps_per_call: Optimizer steps per call of `update_params`.
  """

  submission: str
  study: str
  workload: str
  framework: str
  trial: int
  evaluations: tuple[Evaluation, ...]
  hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  gpus: int | None = None
  evaluation_share: float | None = None
  averaging_share: float | None = None
  steps_per_call: int = 1


def steps_per_call(
  hyperparameters: Mapping[str, Any], goal: Goal | None
) -> int:
  """Optimizer steps per call of `update_params`.

  The v0.5 submissions `lawa_queue` and `lawa_ema` make several steps in a call,
  which the benchmark counts as one: `lawa_inner_steps_frac` of those that fit
  between two evaluations at the budget's seconds per step.
  """
  fraction = hyperparameters.get('lawa_inner_steps_frac')
  if not isinstance(fraction, int | float) or goal is None:
    return 1
  if not 0 < fraction <= 1:
    return 1
  if not (goal.eval_period_seconds and goal.budget_seconds):
    return 1
  seconds_per_step = goal.budget_seconds / (goal.budget_steps or math.nan)
  return math.ceil(fraction * goal.eval_period_seconds / seconds_per_step)


@dataclasses.dataclass
class Reader:
  """Reads trials and collects what is wrong with them.

  Args:
    goals: Goal of each known workload.
    problems: A line for each fault, in the order met.
  """

  goals: Mapping[str, Goal]
  problems: list[str] = dataclasses.field(default_factory=list)
  # Trials with the same fault, by the folder of their workload.
  _faults: dict[tuple[str, str], list[int]] = dataclasses.field(
    default_factory=dict
  )

  def _tell(self, place: Place, fault: str) -> None:
    """Note a fault; trials of a study that share it become one line."""
    where = str(place).removesuffix(f'/trial_{place.trial}')
    self._faults.setdefault((where, fault), []).append(place.trial)

  def read(self, folders: Sequence[pathlib.Path]) -> list[Trial]:
    """Read all trials below some folders, each of them once."""
    found: dict[pathlib.Path, Place] = {}
    for folder in folders:
      for place in find(folder):
        found.setdefault(place.path.resolve(), place)
      for path in without_trials(folder):
        self.problems.append(f'{path}: no trials.')
    places = self._without_namesakes(list(found.values()))
    unknown = sorted({p.workload for p in places} - set(self.goals))
    for name in unknown:
      self.problems.append(
        f'{name}: unknown workload, left out. Give its target by --targets.'
      )
    # In this order, whatever that of the folders was.
    places.sort(key=lambda p: (p.submission, p.workload, p.study, p.trial))
    trials = [self._trial(p) for p in places if p.workload not in unknown]
    self.problems += [
      f'{where}/trial_{", ".join(map(str, numbers))}: {fault}'
      for (where, fault), numbers in self._faults.items()
    ]
    self._faults.clear()
    return split_frameworks([t for t in trials if t is not None])

  def _without_namesakes(self, places: Sequence[Place]) -> list[Place]:
    """Keep the first of several submissions that share a name."""
    roots: dict[str, str] = {}
    seen: set[str] = set()
    kept = []
    for place in places:
      root = str(place.root)
      if roots.setdefault(place.submission, root) == root:
        kept.append(place)
      elif root not in seen:
        seen.add(root)
        self.problems.append(
          f'{root}: a submission of this name is read from '
          f'{roots[place.submission]} already, left out. Rename its folder.'
        )
    return kept

  def _trial(self, place: Place) -> Trial | None:
    goal = self.goals[place.workload]
    rows = self._rows(place, goal)
    if not rows:
      return None
    hyperparameters = self._json(place, logs.HPARAMS)
    calls = steps_per_call(hyperparameters, goal)
    return Trial(
      submission=place.submission,
      study=place.study,
      workload=place.workload,
      framework=place.framework,
      trial=place.trial,
      evaluations=tuple(
        Evaluation(
          step=_number(row, _STEP) * calls,
          seconds=_seconds(row),
          value=_number(row, goal.column),
        )
        for row in rows
      ),
      hyperparameters=hyperparameters,
      gpus=_gpus(self._json(place, 'meta_data_0.json')),
      evaluation_share=_evaluation_share(rows[-1]),
      averaging_share=_averaging_share(self._json(place, 'profile.json')),
      steps_per_call=calls,
    )

  def _json(self, place: Place, name: str) -> dict[str, Any]:
    """Content of an optional JSON file."""
    path = place.path / name
    if not path.exists():
      return {}
    content = logs.read_json(str(path))
    if isinstance(content, dict):
      return content
    # The benchmark writes null where a self-tuning run has no hyperparameters.
    if path.read_bytes().strip() != b'null':
      self._tell(place, f'{name} is not a JSON object, ignored.')
    return {}

  def _rows(self, place: Place, goal: Goal) -> list[dict[str, str]]:
    """Complete rows of a trial; faults of the file go to the problems."""
    path = place.path / logs.EVAL_MEASUREMENTS
    try:
      text = path.read_text(encoding='utf-8-sig', errors='replace')
    except OSError:
      self._tell(place, f'no measurements ({path.name} missing).')
      return []
    lines = text.replace('\0', '').splitlines()
    reader = csv.DictReader(lines)
    try:
      columns = list(reader.fieldnames or [])
    except csv.Error:
      columns = []
    if not columns:
      self._tell(place, f'no measurements ({path.name} is empty).')
      return []
    needed = [_STEP, goal.column]
    missing = [name for name in needed if name not in columns]
    if not any(name in columns for name in _SECONDS):
      missing.append(' or '.join(_SECONDS))
    if missing:
      self._tell(place, f'{path.name} has no column {", ".join(missing)}.')
      return []
    try:
      rows = list(reader)
    except csv.Error as error:
      self._tell(place, f'{path.name} is not CSV ({error}).')
      return []
    if not rows:
      self._tell(place, f'no measurements ({path.name} has no rows).')
      return []
    rows = self._whole(place, rows, columns, text.endswith('\n'), goal)
    values = [_number(row, goal.column) for row in rows]
    if nan := sum(map(math.isnan, values)):
      self._tell(
        place,
        f'{goal.column} is missing or NaN in {nan} of {len(rows)} rows, which '
        'reach no target.',
      )
    return rows

  def _whole(
    self,
    place: Place,
    rows: list[dict[str, str]],
    columns: Sequence[str],
    ends_with_newline: bool,
    goal: Goal,
  ) -> list[dict[str, str]]:
    """Rows that are neither cut nor without step and time."""

    def is_whole(i: int, row: Mapping[Any, Any]) -> bool:
      # DictReader fills a short row with None and lists what is too much.
      if None in row.values() or None in row:
        return False
      last = i == len(rows) - 1 and not ends_with_newline
      if last and columns[-1] in (_STEP, goal.column, *_SECONDS):
        return False
      return (
        0 <= _number(row, _STEP) < math.inf and 0 <= _seconds(row) < math.inf
      )

    kept = [row for i, row in enumerate(rows) if is_whole(i, row)]
    if lost := len(rows) - len(kept):
      self._tell(
        place,
        f'{lost} of {len(rows)} rows cut or without step and time, left out.',
      )
    return kept


def _number(row: Mapping[Any, Any], column: str) -> float:
  try:
    return float(row.get(column) or 'nan')
  except ValueError:
    return math.nan


def _seconds(row: Mapping[Any, Any]) -> float:
  """Billed seconds: the column that the benchmark's scoring reads."""
  for column in _SECONDS:
    if row.get(column):
      return _number(row, column)
  return math.nan


def _evaluation_share(row: Mapping[Any, Any]) -> float | None:
  parts = [_number(row, f'accumulated_{name}_time') for name in _TIMES]
  total = math.fsum(p for p in parts if math.isfinite(p))
  return parts[1] / total if total > 0 and math.isfinite(parts[1]) else None


def _averaging_share(profile: Mapping[str, Any]) -> float | None:
  """Averaging and swaps as a share of the calls that the benchmark bills."""
  billed = averaging = 0.0
  try:
    for row in profile.get('sections', ()):
      if row['section'] in ('Update parameters', 'Prepare for eval'):
        billed += row['total_seconds']
      if row['section'] in ('Averaging', 'Swap', 'Probe'):
        averaging += row['total_seconds']
  except (KeyError, TypeError):
    return None
  return averaging / billed if billed else None


def _gpus(meta_data: Mapping[str, Any]) -> int | None:
  count = meta_data.get('gpu_count')
  return count if isinstance(count, int) and count > 0 else None


def split_frameworks(trials: Iterable[Trial]) -> list[Trial]:
  """Rename submissions that ran a workload in both frameworks.

  Each becomes two, `<name> [jax]` and `<name> [pytorch]`, since a median over
  both would compare neither.
  """
  trials = list(trials)
  frameworks: dict[tuple[str, str], set[str]] = {}
  for trial in trials:
    key = (trial.submission, trial.workload)
    frameworks.setdefault(key, set()).add(trial.framework)
  both = {name for (name, _), used in frameworks.items() if len(used) > 1}
  return [
    dataclasses.replace(t, submission=f'{t.submission} [{t.framework}]')
    if t.submission in both
    else t
    for t in trials
  ]
