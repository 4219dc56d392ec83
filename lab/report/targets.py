"""Targets and budgets of a version of the benchmark.

Targets come from a `workload_targets.json`, which the benchmark's scoring
reads, or from `versions.json`, which lists AlgoPerf's time budgets, too.
Workloads of `lab.workloads` take theirs from their calibration.
"""

import dataclasses
import functools
import importlib.resources
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from lab.core.errors import InputError

LOWER = frozenset(
  ('loss', 'ce_loss', 'ctc_loss', 'l1_loss', 'error_rate', 'wer', 'ppl')
)
HIGHER = frozenset(('accuracy', 'ssim', 'mean_average_precision', 'bleu'))
DEFAULT_VERSION = '1.0'
# Of targets files; 0.6 has the base workloads of 0.5, later those of 1.0.
VERSIONS = ('0.5', '0.6', '1.0')
TARGETS_FILE = 'workload_targets.json'
# What JSON of another shape, or of absurd depth and size, raises.
_UNUSABLE = (
  AttributeError,
  KeyError,
  OverflowError,
  RecursionError,
  TypeError,
  ValueError,
)


def higher_is_better(metric: str) -> bool:
  """Direction of a metric of the benchmark.

  >>> higher_is_better('bleu'), higher_is_better('wer')
  (True, False)

  Raises:
    ValueError: the metric is unknown.
  """
  if metric in HIGHER:
    return True
  if metric in LOWER:
    return False
  names = ', '.join(sorted(HIGHER | LOWER))
  raise ValueError(f'Invalid {metric=}. Must be among {names}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
  """Target and budget of a workload.

  Args:
    metric: Target metric, a column `validation/<metric>` of the logs.
    target: Value that ends a run.
    step_hint: Steps of the budget T; None if unknown.
    budget_seconds: Billed seconds allowed under external tuning; None if
      unknown.
    eval_period_seconds: Seconds between evaluations; None if unknown.
    budget_steps: Step hint that the budget in seconds was set for; differs from
      `step_hint` where targets of a newer version score older logs.
  """

  metric: str
  target: float
  step_hint: int | None = None
  budget_seconds: float | None = None
  eval_period_seconds: float | None = None
  budget_steps: int | None = None

  @property
  def column(self) -> str:
    """Column of the target metric in the logs."""
    return f'validation/{self.metric}'

  @property
  def higher_is_better(self) -> bool:
    """Direction of the target metric."""
    return higher_is_better(self.metric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
  """Goals of all workloads, and those that are scored.

  Args:
    source: Where the targets come from, for the reader of a report.
    version: Version of the benchmark whose budgets are used; None if unknown.
    goals: Goal of each workload, base workload or not.
    base_workloads: Workloads that the score is a fraction of.
    gpus: Devices of the benchmark's machine; None if unknown.
    self_tuning_factor: Time budget under self-tuning, relative to external.
    held_out: Base workload of each held-out workload; a submission that misses
      the latter misses the former, too.
    invalid: A line for each workload whose goal cannot be used.
  """

  source: str
  version: str | None
  goals: Mapping[str, Goal]
  base_workloads: tuple[str, ...]
  gpus: int | None = None
  self_tuning_factor: float = 1.0
  held_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
  invalid: tuple[str, ...] = ()

  @property
  def title(self) -> str:
    """Source with the version, for the reader of a report."""
    known = f'AlgoPerf {self.version}'
    if self.version is None or self.source == known:
      return self.source
    return f'{self.source} (budgets of {known})'

  def budget_seconds(self, workload: str, ruleset: str) -> float | None:
    """Billed seconds that a ruleset allows; None if unknown."""
    seconds = self.goals[workload].budget_seconds
    if seconds is None:
      return None
    return seconds * (self.self_tuning_factor if ruleset == 'self' else 1.0)


@functools.cache
def _versions() -> list[dict[str, Any]]:
  text = importlib.resources.files('lab.report').joinpath('versions.json')
  return json.loads(text.read_text(encoding='utf-8'))


def of_version(version: str = DEFAULT_VERSION) -> Targets:
  """Targets that come with this package.

  >>> len(of_version('1.0').base_workloads)
  9
  """
  (entry,) = [e for e in _versions() if e['version'] == version]
  goals = {name: Goal(**goal) for name, goal in entry['workloads'].items()}
  return Targets(
    source=f'AlgoPerf {version}',
    version=version,
    goals=goals,
    base_workloads=tuple(goals),
    gpus=entry['gpus'],
    self_tuning_factor=entry['self_tuning_factor'],
  )


def _known_version(base_workloads: Collection[str]) -> Targets | None:
  """Version with the same base workloads: files may carry an older number."""
  for entry in _versions():
    if set(entry['workloads']) == set(base_workloads):
      return of_version(entry['version'])
  return None


def _base_of(workload: str, base_workloads: Collection[str]) -> str | None:
  """Base workload that a variant's name begins with; None without one."""
  bases = [name for name in base_workloads if workload.startswith(f'{name}_')]
  return max(bases, key=len, default=None)


def read(path: pathlib.Path) -> Targets:
  """Targets in a `workload_targets.json`; budgets of the version it matches.

  Raises:
    InputError: the file cannot be read or has no targets.
  """
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
    workloads = dict(content['workloads'])
    base = tuple(map(str, content['base_workloads']))
    variants = tuple(map(str, content.get('held_out_workloads', ())))
  except (OSError, *_UNUSABLE) as error:
    raise InputError(
      f'Cannot read targets from {path} ({str(error)[:200]!r}). Must be a JSON '
      'file with the keys base_workloads and workloads.'
    ) from error
  known = _known_version(base)
  goals, invalid = {}, []
  for name, entry in workloads.items():
    # A variant has the budgets of its base workload.
    likely = name if name in base else _base_of(name, base)
    budget = known.goals.get(likely or '') if known is not None else None
    try:
      goals[name] = _goal(entry, budget)
    except _UNUSABLE as error:
      invalid.append(f'{path}: no usable target of {name} ({error}).')
  missing = [name for name in base if name not in workloads]
  invalid += [f'{path}: no target of base workload {name}.' for name in missing]
  held_out = {}
  for name in variants:
    likely = _base_of(name, base)
    if likely is None:
      invalid.append(f'{path}: held-out workload {name} has no base workload.')
    elif name not in goals:
      invalid.append(f'{path}: no target of held-out workload {name}.')
    else:
      held_out[name] = likely
  number = content.get('benchmark_version')
  if known is None:
    invalid.append(
      f'{path}: unknown version {number!r}, time budgets are unknown.'
    )
  elif number is not None and str(number) not in VERSIONS:
    invalid.append(
      f'{path}: unknown version {number!r}, time budgets are those of '
      f'{known.version}, which has the same base workloads.'
    )
  return Targets(
    source=path.name,
    version=None if known is None else known.version,
    goals=goals,
    base_workloads=base,
    gpus=None if known is None else known.gpus,
    self_tuning_factor=1.0 if known is None else known.self_tuning_factor,
    held_out=held_out,
    invalid=tuple(invalid),
  )


def _goal(entry: Mapping[str, Any], budget: Goal | None) -> Goal:
  metric = str(entry['target_metric_name'])
  higher_is_better(metric)
  hint = entry.get('step_hint')
  goal = Goal(
    metric=metric,
    target=float(entry['validation_target_value']),
    step_hint=None if hint is None else int(hint),
  )
  if budget is None:
    return goal
  return dataclasses.replace(
    goal,
    budget_seconds=budget.budget_seconds,
    eval_period_seconds=budget.eval_period_seconds,
    budget_steps=budget.budget_steps,
  )


@functools.cache
def local_goals() -> dict[str, Goal]:
  """Goals of the workloads in `lab.workloads`, from their calibrations."""
  goals = {}
  for file in importlib.resources.files('lab.workloads').iterdir():
    if not file.name.endswith('.json'):
      continue
    content = json.loads(file.read_text(encoding='utf-8'))
    goals[content['workload']] = Goal(
      metric=content['metric'],
      target=float(content['validation_target']),
      step_hint=int(content['step_hint']),
    )
  return dict(sorted(goals.items()))


def for_logs(targets: Targets, workloads: Collection[str]) -> Targets:
  """Add the local workloads; score them where logs hold no base workload.

  Args:
    targets: Of the benchmark.
    workloads: Names that occur in the logs.
  """
  local = {n: g for n, g in local_goals().items() if n in workloads}
  local = {n: g for n, g in local.items() if n not in targets.goals}
  base, held_out = targets.base_workloads, targets.held_out
  source, version, gpus = targets.source, targets.version, targets.gpus
  if local and not set(base) & set(workloads):
    base, source = tuple(local), 'calibrations of lab.workloads'
    version, gpus, held_out = None, None, {}
  return dataclasses.replace(
    targets,
    goals={**targets.goals, **local},
    base_workloads=base,
    source=source,
    version=version,
    gpus=gpus,
    held_out=held_out,
  )
