"""One training run of a study, and the content by which it is kept."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from absl import logging

from lab.core import search_space
from lab.core.frameworks import framework_of
from lab.run import from_python
from lab.run.observers import Observer
from lab.run.trial import TrialRun
from lab.studies.parts import code
from lab.studies.parts.methods import METHODS
from lab.workloads import build_workload

Result = dict[str, Any]
ROOT = pathlib.Path(__file__).resolve().parents[3]
# Submissions that exist for studies only.
COMPARED = 'lab/studies/submissions'


class Follower(Observer):
  """An observer whose findings a study keeps.

  Attributes:
    rule: names of modules and packages whose code decides what is found,
      beside the follower's own; a change of their code (not of comments or
      docstrings) makes kept results stale.
  """

  rule: ClassVar[tuple[str, ...]] = ()

  def findings(self) -> dict[str, Any]:
    """Plain values, after the run; 'curves' among them.

    A curve is a list of [step, seconds, value] for each candidate.
    """
    raise NotImplementedError


class _LastStep(Observer):
  step = 0

  def after_step(self, run: TrialRun) -> None:
    self.step = run.state.global_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """A run that a study wants.

  Args:
    workload: name of a local workload.
    submission: name of a folder in submissions/, or of a file in
      lab/studies/submissions/.
    point: hyperparameters of the submission.
    seed: of the run.
    follower: observes the run; called with `follows` as keyword arguments.
    follows: plain values.
    columns: further columns of the rows of the run.
    epochs: passes over the data; 1 draws every batch anew.
    budget_factor: steps of the run and T, as a multiple of the step hint.
    needs_target: whether the result depends on the workload's target.
  """

  workload: str
  submission: str
  point: Mapping[str, Any]
  seed: int
  follower: type[Follower]
  follows: Mapping[str, Any]
  columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  epochs: int = 1
  budget_factor: float = 1.0
  needs_target: bool = True

  @property
  def submission_path(self) -> str:
    """The submission's file, relative to the clone."""
    compared = f'{COMPARED}/{self.submission}.py'
    if pathlib.Path(compared).exists():
      return compared
    return f'submissions/{self.submission}/submission.py'

  @functools.cached_property
  def content(self) -> dict[str, Any]:
    """Plain values by which a kept result is told apart.

    That is the run's description, the workload's data, sizes and target, and
    the code of the rule, of the submission's file and of the workload's own
    module. The code beneath them, such as the optimizers of `weightavg` and the
    base class of the workloads, is not among it: it changes often without
    another result, and days of runs would be made again. `code.of_training` is
    kept beside the result instead.
    """
    fields = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name != 'follower'
    }
    modules = [
      self.follower.__module__,
      *self.follower.rule,
      f'lab.workloads.{self.workload}',
    ]
    content = fields | {
      'follower': self.follower.__qualname__,
      'data': _identity(self.workload),
      'target': build_workload(self.workload).validation_target_value
      if self.needs_target
      else None,
      'code': {name: code.of_module(name) for name in modules}
      | {self.submission: code.of_file(self.submission_path)},
      'torch': torch.__version__,
    }
    # Tuples are lists in a file.
    return json.loads(json.dumps(content))

  @property
  def name(self) -> str:
    """The run in a word, with a digest of its content."""
    text = json.dumps(self.content, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f'{self.workload}_{self.submission}_{self.seed}_{digest}'

  def build(self) -> Any:
    """Build the workload that is trained on, in the submission's framework."""
    if framework_of(self.submission) == 'jax':
      # JAX is an extra.
      from lab.workloads import jax as twins

      workload = twins.build_workload(self.workload)
    else:
      workload = build_workload(self.workload)
    workload.epochs = self.epochs
    return workload

  def steps_of(self, workload: Any) -> int:
    """Steps of the run on the workload that `build` has made."""
    return round(self.budget_factor * workload.step_hint)

  def execute(self, directory: str) -> Result:
    """Train in this process; the follower's findings beside the columns.

    A run has diverged where its optimizer raises FloatingPointError, as Shampoo
    does at a gradient that is not finite; others go on with NaN.
    """
    workload = self.build()
    point, steps = dict(self.point), self.steps_of(workload)
    if self.budget_factor != 1.0:
      point['step_hint_factor'] = self.budget_factor
    follower, last = self.follower(**self.follows), _LastStep()
    diverged_at = None
    try:
      from_python.train(
        workload,
        self.submission_path,
        point,
        self.seed,
        str(pathlib.Path(directory, 'logs', self.name)),
        [follower, last],
        steps,
      )
    except FloatingPointError as error:
      diverged_at = last.step + 1
      logging.warning(
        '%s diverged at step %d: %s', self.name, diverged_at, error
      )
    findings = follower.findings()
    if diverged_at is not None:
      findings = self.until_divergence(findings, diverged_at)
    return {
      **self.columns,
      'workload': self.workload,
      'seed': self.seed,
      'budget_steps': steps,
      'evaluated_every': workload.eval_every_steps,
      'target': self.content['target'],
      'higher_is_better': workload.higher_is_better,
      **findings,
    }

  def until_divergence(
    self, findings: dict[str, Any], step: int
  ) -> dict[str, Any]:
    """Complete what was found before the step that the optimizer refused."""
    del step
    empty: dict[str, Any] = {n: [] for n in self.follows.get('candidates', ())}
    return findings | {'curves': empty | findings['curves']}


def _identity(name: str) -> dict[str, Any]:
  workload = build_workload(name)
  return {
    'fingerprint': _fingerprint(name),
    'step_hint': workload.step_hint,
    'batch_size': workload.batch_size,
    'sizes': workload.sizes,
  }


@functools.cache
def _fingerprint(name: str) -> str:
  return build_workload(name).data_fingerprint()


def tuned_path(workload: str, optimizer: str = 'nadamw') -> pathlib.Path:
  """Path of the search space that holds a method's tuned point."""
  path = ROOT / build_workload(workload).tuned_search_space
  suffix = '' if optimizer == 'nadamw' else f'_{optimizer}'
  return path.with_stem(path.stem + suffix)


def tuned_point(workload: str, optimizer: str = 'nadamw') -> dict[str, Any]:
  """The point that the workload's runs of a method have.

  A method that was not searched on the workload starts from the tuned point of
  its base (`lab.studies.parts.methods`).
  """
  path, method = tuned_path(workload, optimizer), METHODS[optimizer]
  if method.base is not None and not path.exists():
    return method.start(tuned_point(workload, method.base))
  (point,) = search_space.load(str(path), 1, seed=0)
  return point
