"""Train one point from Python: the runner without its command line."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lab.core import search_space
from lab.core.frameworks import framework_of
from lab.run import submissions
from lab.run.distributed import Context
from lab.run.observers import Observer
from lab.run.run_state import RunState
from lab.run.settings import Settings
from lab.run.trial import TrialRun
from lab.run.trial_setup import Trial
from lab.workloads.device import local_device


def train(
  workload: Any,
  submission_path: str,
  point: Mapping[str, Any],
  seed: int,
  directory: str,
  observers: Sequence[Observer] = (),
  max_global_steps: int | None = None,
) -> RunState:
  """Train to the end of the budget in this process; the final state.

  The run is that of `lab.run --run_to_budget --nosave_checkpoints` with the
  same workload, submission, point and seed, bit for bit.

  Args:
    workload: A local workload, or its twin in JAX for a submission in JAX.
    submission_path: File with the submission functions, below the working
      directory.
    point: Hyperparameters by name.
    seed: Seed of the run, as `--rng_seed`.
    directory: For the run's logs; made if missing.
    observers: Receive the run's events.
    max_global_steps: Budget in steps; the step hint by default.

  Raises:
    InputError: the submission cannot be loaded.
    ValueError: the submission does not take the point.
  """
  submission = submissions.load(submission_path)
  folder = os.path.basename(os.path.dirname(submission_path))
  settings = Settings(
    workload=workload.name,
    framework=framework_of(folder),
    submission_path=submission_path,
    experiment_dir=os.path.dirname(directory),
    experiment_name=os.path.basename(directory),
    rng_seed=seed,
    max_global_steps=max_global_steps,
    run_to_budget=True,
    save_checkpoints=False,
  )
  os.makedirs(directory, exist_ok=True)
  trial = Trial(
    workload=workload,
    submission=submission,
    settings=settings,
    context=Context(device=local_device()),
    hyperparameters=search_space.as_hyperparameters(dict(point)),
    rng_seed=seed,
    batch_size=submission.batch_size(
      workload.name, [], getattr(workload, 'batch_size', None)
    ),
    eval_batch_size=workload.eval_batch_size,
    budget=max_global_steps or workload.step_hint,
    eval_every=workload.eval_every_steps,
    directory=directory,
  )
  return TrialRun(trial, {}, observers).run()
