"""Check a study before any of its runs starts."""

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

from lab.core import command_line, search_space
from lab.core.errors import InputError
from lab.core.frameworks import framework_of
from lab.launch import benchmark, launch_plan
from lab.launch.launch_plan import Plan, Run
from lab.workloads import WORKLOADS as LOCAL
from lab.workloads import build_workload


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
    world = plan.nodes * plan.processes
    for name, workload in pairs:
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


def _check_budgets(plan: Plan, runs: list[Run]) -> None:
  """Refuse runs recorded with another budget."""
  for run in runs:
    known, budget = launch_plan.recorded_budget(plan.directory(run))
    if known and budget != plan.max_global_steps:
      raise InputError(
        f'{plan.directory(run)} was run with max_global_steps={budget}, not '
        f'{plan.max_global_steps}. Use another --experiment_dir.'
      )


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
  _check_budgets(plan, runs)
  if of_benchmark:
    _check_benchmark(values, plan, of_benchmark[0])
  for run in of_benchmark:
    benchmark.check_packages(run.workload)
  if not values.no_data_check:
    for run in of_benchmark:
      benchmark.check_data(
        run.workload, plan.data_dir, framework_of(run.submission)
      )
