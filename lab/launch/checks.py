"""Check a study before any of its runs starts."""

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from lab.core import command_line, logs, search_space
from lab.core.errors import InputError
from lab.core.frameworks import framework_of
from lab.launch import benchmark, launch_plan
from lab.launch.launch_plan import Plan, Run
from lab.workloads import WORKLOADS as LOCAL
from lab.workloads import build_workload
from lab.workloads.jax import WORKLOADS as JAX_TWINS


@contextlib.contextmanager
def _inside(folder: pathlib.Path) -> Iterator[None]:
  before = os.getcwd()
  os.chdir(folder)
  try:
    yield
  finally:
    os.chdir(before)


def _check_submissions(plan: Plan, runs: list[Run]) -> None:
  """Search spaces have enough points, batch sizes divide."""
  from lab.run import submissions

  pairs = sorted({(run.submission, run.workload) for run in runs})
  with _inside(plan.root):
    for name in sorted({submission for submission, _ in pairs}):
      space = plan.search_space_path(name)
      if space is not None:
        points = search_space.load(space, plan.trials, plan.seed)
        if len(points) < plan.trials:
          raise InputError(
            f'Invalid trials={plan.trials}. Must be at most {len(points)}, the '
            f'number of points in {space}.'
          )
        is_local = all(w in LOCAL for n, w in pairs if n == name)
        if not is_local and not _listed_points(plan, name):
          raise InputError(
            f'Invalid search space {space}. Must be a list of points: each '
            'trial is a process of its own, and the benchmark draws from '
            'ranges in another order in each.'
          )
    world = plan.nodes * plan.processes
    for name, workload in pairs:
      if (
        workload in LOCAL
        and framework_of(name) == 'jax'
        and workload not in JAX_TWINS
      ):
        raise InputError(
          f'Invalid workload {workload} for {name}. Must be among '
          f'{", ".join(JAX_TWINS)}.'
        )
      submission = submissions.load(plan.submission_path(name))
      own = build_workload(workload).batch_size if workload in LOCAL else None
      known = [*LOCAL, *benchmark.BASES]
      sizes = {'batch size': submission.batch_size(workload, known, own)}
      if workload in benchmark.BASE_OF:
        base = benchmark.BASES[benchmark.BASE_OF[workload]]
        sizes['eval batch size'] = base.eval_batch_size
      for what, size in sizes.items():
        if world and size % world:
          raise InputError(
            f'Invalid {what} {size} of {name} on {workload}. Must be a '
            f'multiple of the number of processes, {world}.'
          )


def check_recorded(plan: Plan, runs: list[Run]) -> None:
  """Raise InputError for a run recorded with another budget, seed or point."""
  spaces = {
    name: _listed_points(plan, name) for name in {r.submission for r in runs}
  }
  for run in runs:
    directory = plan.directory(run)
    recorded = launch_plan.recorded_flags(directory)
    mine: dict[str, Any] = {
      'max_global_steps': plan.max_global_steps,
      'tuning_ruleset': plan.ruleset,
      'rng_seed': launch_plan.seed_of(plan, run),
    }
    if recorded:
      # Records of other launchers may have the budget alone.
      recorded = {'max_global_steps': None} | recorded
    point = logs.read_json(str(directory / logs.HPARAMS))
    points = spaces[run.submission]
    if isinstance(point, dict) and len(points) >= run.trial:
      recorded, mine = recorded | point, mine | points[run.trial - 1]
    for name, value in recorded.items():
      if name in mine and value != mine[name]:
        raise InputError(
          f'{directory} was run with {name}={value}, not {mine[name]}. Use '
          'another --experiment_dir.'
        )


def _listed_points(plan: Plan, submission: str) -> list[search_space.Point]:
  """Points of a search space that lists them; none of one of ranges."""
  space = plan.search_space_path(submission)
  if space is None:
    return []
  content = logs.read_json(str(plan.root / space))
  return content if isinstance(content, list) else []


def _check_nodes(values: argparse.Namespace, plan: Plan, run: Run) -> None:
  if plan.nodes == 1:
    return
  if values.executor == 'local':
    raise InputError(
      f'Invalid nodes={plan.nodes}. Must be 1 with --executor local.'
    )
  if not plan.processes:
    raise InputError(
      f'Invalid processes_per_node=0. Must be at least 1 on {plan.nodes} nodes.'
    )
  if run.is_local:
    return
  text = (
    "the benchmark's runner takes LOCAL_RANK for its rank and the GPUs of one "
    'node for all: on several, each would train on the same batches and write '
    'the same files'
  )
  if values.executor != 'print':
    raise InputError(
      f'Invalid nodes={plan.nodes} for {run.workload}. Must be 1: {text}. Jobs '
      'are spread over nodes as it is.'
    )
  print(f'warning: {text}.', file=sys.stderr)


def _check_benchmark(values: argparse.Namespace, plan: Plan, run: Run) -> None:
  """Check the requirements of the benchmark's runner for a workload."""
  rendezvous = (
    launch_plan.Rendezvous('host:1', 'id') if plan.nodes > 1 else None
  )
  words = launch_plan.command(plan, run, rendezvous=rendezvous)
  warning = benchmark.check_installed(launch_plan.flag_names(words))
  if warning is not None:
    print(f'warning: {warning}', file=sys.stderr)
  if values.executor == 'local' and plan.processes:
    import torch

    here = torch.cuda.device_count()
    if plan.processes > here:
      raise InputError(
        f'Invalid processes_per_node={plan.processes}. Must be at most {here}, '
        'the number of GPUs here: the benchmark needs one for each (0 runs '
        'without torchrun).'
      )


def check(values: argparse.Namespace, plan: Plan, runs: list[Run]) -> None:
  """Everything that can be wrong before any run is started.

  Raises:
    InputError: nothing was started or written.
  """
  command_line.check_writable(plan.experiment_dir)
  _check_submissions(plan, runs)
  first_of = {
    (run.workload, framework_of(run.submission)): run for run in reversed(runs)
  }
  of_benchmark = [run for run in first_of.values() if not run.is_local]
  _check_nodes(values, plan, (of_benchmark or runs)[0])
  if values.executor == 'print':
    return
  check_recorded(plan, runs)
  if of_benchmark:
    _check_benchmark(values, plan, of_benchmark[0])
  for run in of_benchmark:
    benchmark.check_packages(run.workload)
  if not values.no_data_check:
    for run in of_benchmark:
      benchmark.check_data(
        run.workload, plan.data_dir, framework_of(run.submission)
      )
