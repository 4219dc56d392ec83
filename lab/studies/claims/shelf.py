"""The results that claims read, and the runs that they ask for.

A claim describes a run and gets its result, or None where it is not finished.
A claim that is measured on an empty shelf says in this way which runs it needs.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence

from lab.studies.claims.runs import Run
from lab.studies.claims.statistics import Key
from lab.studies.parts import study
from lab.studies.parts.training import Result
from lab.workloads import WORKLOADS, build_workload


class NotMeasured(Exception):
  """A claim cannot be measured here; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
  """Set the size of a study.

  Args:
    workloads: those that claims may use.
    most_seeds: of each claim.
    lengths: of runs, by workload, as multiples of those that claims ask for.
    every: of so many evaluations one is measured.
  """

  workloads: tuple[str, ...]
  most_seeds: int | None = None
  lengths: dict[str, float] = dataclasses.field(default_factory=dict)
  every: int = 1


FULL = Scale(workloads=tuple(sorted(WORKLOADS)))
# Short runs of two workloads: every line of code, no finding.
QUICK = Scale(
  workloads=('click_dlrm', 'stdlib_lm'),
  most_seeds=2,
  lengths={'click_dlrm': 0.06, 'stdlib_lm': 0.14},
  every=10,
)


class Shelf:
  """Results by run, and every run that was asked for.

  Args:
    scale: of the study.

  Attributes:
    misses: how often a run was asked for that is not finished.
  """

  def __init__(self, scale: Scale = FULL) -> None:
    self.scale = scale
    self._runs: dict[str, Run] = {}
    self._results: dict[str, Result] = {}
    self.misses = 0

  @property
  def runs(self) -> list[Run]:
    """All runs that were asked for, in the order of asking."""
    return list(self._runs.values())

  @property
  def filled(self) -> bool:
    """Tell if there is any result."""
    return bool(self._results)

  def workloads(self, *names: str) -> tuple[str, ...]:
    """Select the names that the study uses; all of its own without names."""
    return tuple(n for n in self.scale.workloads if n in names or not names)

  def seeds(self, number: int) -> range:
    """The first seeds, as many as the study allows."""
    most = self.scale.most_seeds
    return range(number if most is None else min(number, most))

  def get(self, run: Run) -> Result | None:
    """Result of a run at the study's scale; None where it is not finished."""
    key = _key(run)
    if key not in self._runs:
      length = self.scale.lengths.get(run.workload)
      if length is not None:
        run = run.scaled(length, self.scale.every)
      self._runs[key] = run
    self.misses += key not in self._results
    return self._results.get(key)

  def put(self, results: Sequence[Result | None]) -> None:
    """Take the results of `runs`, in their order; None where there is none.

    Runs know no target: a result gets the one that its workload has now.
    """
    for (key, run), result in zip(self._runs.items(), results, strict=True):
      if result is not None:
        target = result['target']
        if target is None:
          target = _target(run.workload)
        self._results[key] = {**result, 'target': target}

  def effects(
    self,
    workloads: Iterable[str],
    seeds: Iterable[int],
    effect: Callable[[str, int], float | None],
  ) -> dict[Key, float | None]:
    """An effect for each workload and seed."""
    seeds = tuple(seeds)
    return {(w, seed): effect(w, seed) for w in workloads for seed in seeds}


def _key(run: Run) -> str:
  """Describe a run by its own fields; `name` would load its workload."""
  fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
  fields['follower'] = run.follower.__qualname__
  return json.dumps(fields, sort_keys=True)


@functools.cache
def _target(workload: str) -> float:
  return build_workload(workload).validation_target_value


def check_available(submission: str) -> None:
  """Raise NotMeasured unless a submission exists."""
  if not (study.ROOT / 'submissions' / submission / 'submission.py').exists():
    raise NotMeasured(f'There is no submission {submission} yet.')
