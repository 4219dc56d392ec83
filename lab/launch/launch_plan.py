"""The runs of a study: their names, seeds, directories, states and commands.

A run is one trial of one submission on one workload in one study. Its directory
is <experiment_dir>/<submission>/study_<s>/<workload>_<framework>/trial_<t>,
which the benchmark's scoring reads as it is.
"""

import dataclasses
import hashlib
import itertools
import math
import pathlib
import re
import sys
from typing import Any

from lab.core import checkpoint_files, logs
from lab.core.curves import step_of
from lab.core.frameworks import framework_of
from lab.launch import benchmark, recovery
from lab.workloads import WORKLOADS as LOCAL

_FLAG = re.compile(r'--?([A-Za-z_]\w*)')


@dataclasses.dataclass(frozen=True)
class Run:
  """One trial.

  Args:
    submission: Name of the submission.
    workload: A local or a benchmark's workload.
    study: From 0.
    trial: From 1, as in the names of directories.
  """

  submission: str
  workload: str
  study: int
  trial: int

  @property
  def experiment(self) -> str:
    """Name of the experiment, below the experiment directory."""
    return f'{self.submission}/study_{self.study}'

  @property
  def name(self) -> str:
    """Path of the trial below the experiment directory."""
    workload = f'{self.workload}_{framework_of(self.submission)}'
    return f'{self.experiment}/{workload}/trial_{self.trial}'

  @property
  def is_local(self) -> bool:
    """True if the laboratory runs it, False if the benchmark does."""
    return self.workload in LOCAL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """The settings that all runs share.

  Args:
    root: Working directory of the runs; submission paths are relative to it.
    exported: Whether `root` holds exported submissions, not this repository.
    experiment_dir: Absolute.
    data_dir: Folder of the benchmark's data sets.
    ruleset: 'external' or 'self'.
    search_space: For all submissions; None for each one's own.
    trials: Number of trials of a study.
    seed: All seeds are made from it.
    nodes: Nodes of one run.
    processes: Processes on each node; 0 runs without torchrun.
    max_global_steps: Budget in steps; None for the workload's own.
    keep_checkpoints: Keep all of them, not only the last two.
    extra: More flags for the runners.
  """

  root: pathlib.Path
  exported: bool
  experiment_dir: pathlib.Path
  data_dir: str
  ruleset: str
  search_space: str | None
  trials: int
  seed: int
  nodes: int
  processes: int
  max_global_steps: int | None
  keep_checkpoints: bool
  extra: tuple[str, ...] = ()

  def submission_path(self, submission: str) -> str:
    """Path of a submission below the root."""
    folder = 'submissions'
    if self.exported:
      folder = 'self_tuning' if self.ruleset == 'self' else 'external_tuning'
    return f'{folder}/{submission}/submission.py'

  def search_space_path(self, submission: str) -> str | None:
    """Search space of a submission; None under self-tuning."""
    if self.ruleset == 'self':
      return None
    if self.search_space is not None:
      return self.search_space
    if self.exported:
      return f'external_tuning/{submission}/tuning_search_space.json'
    return f'tuning_search_spaces/{submission}.json'

  def directory(self, run: Run) -> pathlib.Path:
    """Directory of a run's logs."""
    return self.experiment_dir / run.name


def runs_of(
  submissions: list[str], workloads: list[str], studies: int, trials: int
) -> list[Run]:
  """The whole matrix: studies outermost, so that the first is whole soonest."""
  return [
    Run(submission, workload, study, trial)
    for study, workload, submission, trial in itertools.product(
      range(studies), workloads, submissions, range(1, trials + 1)
    )
  ]


def seed_of(plan: Plan, run: Run) -> int:
  """Seed of a run, in [1, 2^31 - 2].

  The same for all submissions and trials of a study on a workload, so that
  they see the same data in the same order. Never 0: the benchmark would draw
  another one, at each resumption.
  """
  text = f'{plan.seed}/{run.study}/{run.workload}'
  digest = hashlib.sha256(text.encode()).digest()
  return 1 + int.from_bytes(digest[:8]) % (2**31 - 2)


@dataclasses.dataclass(frozen=True)
class Rendezvous:
  """Rendezvous of the nodes of one run.

  Args:
    endpoint: host:port of the first node.
    identity: The same on all nodes of a run, different for others.
    is_host: Whether this is the first node; None leaves it to torchrun.
  """

  endpoint: str
  identity: str
  is_host: bool | None = None

  def flags(self) -> list[str]:
    """Return the arguments of torchrun."""
    flags = [
      '--rdzv_backend=c10d',
      f'--rdzv_endpoint={self.endpoint}',
      f'--rdzv_id={self.identity}',
    ]
    if self.is_host is not None:
      flags.append(f'--rdzv_conf=is_host={int(self.is_host)}')
    return flags


def _runner_flags(plan: Plan, run: Run, resume: bool) -> list[str]:
  flags = [
    f'--workload={run.workload}',
    f'--framework={framework_of(run.submission)}',
    f'--submission_path={plan.submission_path(run.submission)}',
    f'--tuning_ruleset={plan.ruleset}',
    f'--experiment_dir={plan.experiment_dir}',
    f'--experiment_name={run.experiment}',
    f'--rng_seed={seed_of(plan, run)}',
  ]
  space = plan.search_space_path(run.submission)
  if space is not None:
    flags += [
      f'--tuning_search_space={space}',
      f'--num_tuning_trials={plan.trials}',
      f'--hparam_start_index={run.trial - 1}',
      f'--hparam_end_index={run.trial}',
    ]
  # The benchmark deletes the old checkpoint before it writes the new one; there
  # the launcher deletes (lab.launch.recovery). Our runner replaces it at once.
  if run.is_local and not plan.keep_checkpoints:
    flags.append('--save_intermediate_checkpoints=false')
  if plan.max_global_steps is not None:
    flags.append(f'--max_global_steps={plan.max_global_steps}')
  if not run.is_local:
    flags += benchmark.data_flags(
      run.workload, plan.data_dir, framework_of(run.submission)
    )
  # The benchmark asks on the terminal about a directory that exists, and it
  # does as soon as another trial has begun; without a checkpoint this flag
  # changes nothing there. Our runner starts beside other trials, and wants the
  # flag only for one that has a checkpoint.
  if resume or not run.is_local:
    flags.append('--resume_last_run')
  return [*flags, *plan.extra]


def command(
  plan: Plan,
  run: Run,
  resume: bool = False,
  rendezvous: Rendezvous | None = None,
) -> list[str]:
  """The command of a run, to be started in the plan's root on each node.

  Args:
    plan: What all runs have in common.
    run: The run.
    resume: Whether to go on from the trial's checkpoints.
    rendezvous: Needed on several nodes.
  """
  module = ['-m', 'lab.run' if run.is_local else benchmark.RUNNER]
  flags = _runner_flags(plan, run, resume)
  # In JAX one process drives all devices of a node.
  if not plan.processes or framework_of(run.submission) == 'jax':
    return ['python', *module, *flags]
  torchrun = [
    'torchrun',
    f'--nnodes={plan.nodes}',
    f'--nproc_per_node={plan.processes}',
  ]
  if plan.nodes == 1:
    torchrun.append('--standalone')
  else:
    assert rendezvous is not None
    torchrun += rendezvous.flags()
  return [*torchrun, *module, *flags]


def executable(words: list[str]) -> list[str]:
  """The same command by this Python, whatever is on the PATH."""
  start = {'torchrun': ['-m', 'torch.distributed.run'], 'python': []}[words[0]]
  return [sys.executable, *start, *words[1:]]


def flag_names(words: list[str]) -> set[str]:
  """Names of the runner's flags in a command.

  >>> sorted(flag_names(['python', '-m', 'x', '--a=1', '-b', '--c', '-2']))
  ['a', 'b', 'c']
  """
  # A word without dashes, or a negative number, is the value of a flag.
  matches = map(_FLAG.match, words[words.index('-m') + 2 :])
  return {match[1] for match in matches if match}


def last_score(directory: pathlib.Path) -> dict[str, Any] | None:
  """The last row of measurements.csv if it is the end of a run.

  Both runners end with a row that has a score but is no evaluation.
  """
  try:
    rows = logs.read_rows(str(directory / logs.MEASUREMENTS)).rows
  except OSError:
    return None
  if not rows or rows[-1].get('total_duration'):
    return None
  try:
    score = float(rows[-1]['score'])
  except (KeyError, ValueError):
    return None
  return rows[-1] if math.isfinite(score) else None


def last_evaluation(directory: pathlib.Path) -> int | None:
  """Step of the last evaluation."""
  try:
    rows = logs.read_rows(str(directory / logs.EVAL_MEASUREMENTS)).rows
    return max(map(step_of, rows))
  except (OSError, ValueError, KeyError, TypeError):
    return None


def recorded_flags(directory: pathlib.Path) -> dict[str, Any]:
  """Return the last flags that a run has recorded; {} if there are none."""
  numbers = [
    int(path.stem.partition('_')[2])
    for path in directory.glob('flags_*.json')
    if path.stem.partition('_')[2].isdigit()
  ]
  if not numbers:
    return {}
  return logs.read_object(str(directory / f'flags_{max(numbers)}.json'))


def state_of(plan: Plan, run: Run) -> str:
  """'finished', 'cut off' (a complete checkpoint exists) or 'waiting'."""
  directory = plan.directory(run)
  if last_score(directory) is not None:
    return 'finished'
  return 'cut off' if recovery.complete_steps(directory) else 'waiting'


def has_checkpoints(plan: Plan, run: Run) -> bool:
  """Return True if the run has a checkpoint, complete or not."""
  return bool(checkpoint_files.steps(str(plan.directory(run))))
