"""The constants of a trial, and the model and optimizer that it starts with."""

import dataclasses
from typing import Any

import torch

from lab.run import random_utils
from lab.run.distributed import Context
from lab.run.run_state import RunState
from lab.run.settings import Settings
from lab.run.submissions import Submission
from weightavg.pytorch.profiling import section


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
  """The constants of a trial.

  Args:
    workload: The workload.
    submission: The submission.
    settings: The command line.
    context: This process's place among all.
    hyperparameters: The namedtuple for the submission; None if self-tuning.
    rng_seed: Seed of the run.
    batch_size: Global training batch size.
    eval_batch_size: Global evaluation batch size.
    budget: Steps after which the trial is over.
    eval_every: Steps between evaluations; None goes by the workload's seconds.
    directory: Where logs and checkpoints go.
    checkpoint: Path of the checkpoint to go on from; None starts anew.
  """

  workload: Any
  submission: Submission
  settings: Settings
  context: Context
  hyperparameters: Any
  rng_seed: int
  batch_size: int
  eval_batch_size: int
  budget: int
  eval_every: int | None
  directory: str
  checkpoint: str | None = None

  @property
  def time_limit(self) -> float:
    """Billed seconds after which the trial is over."""
    if self.settings.run_to_budget:
      return float('inf')
    factor = 1.5 if self.settings.tuning_ruleset == 'self' else 1.0
    return factor * self.workload.max_allowed_runtime_sec


@dataclasses.dataclass(frozen=True)
class Streams:
  """Random keys of a run, one for each purpose."""

  data: Any
  optimizer: Any
  model: Any
  steps: Any


def streams(rng_seed: int) -> Streams:
  """Random keys from the seed of a run."""
  root, _ = random_utils.split(random_utils.key(rng_seed))
  return Streams(*random_utils.split(root, 4))


def initial_state(trial: Trial) -> RunState:
  """A fresh model and a fresh optimizer state; writes nothing."""
  keys = streams(trial.rng_seed)
  random_utils.seed_torch(random_utils.torch_seed(keys.model))
  with section('Initializing model'):
    model, model_state = trial.workload.init_model_fn(keys.model)
    if trial.settings.torch_compile:
      model = torch.compile(model)
  random_utils.seed_torch(random_utils.torch_seed(keys.optimizer))
  with section('Initializing optimizer'):
    optimizer_state = trial.submission.init_optimizer_state(
      trial.workload,
      model,
      model_state,
      trial.hyperparameters,
      keys.optimizer,
    )
  return RunState(optimizer_state, model, model_state)
