r"""Run a whole study: submissions x workloads x studies x trials.

  python -m lab.launch --submissions nadamw,nadamw_lawa --workloads all \
      --studies 3 --trials 5 --executor slurm --gpus_per_node 4 \
      --data_dir /data --experiment_dir ~/experiments

Each trial is a job of its own: torchrun with the benchmark's submission_runner,
or with lab.run for the laboratory's workloads. --executor local runs them
one after the other here, print prints their commands, slurm submits them by
submitit. The same command again goes on: what is finished is not run again,
what was cut off resumes. --status shows a table instead. What follows ` -- ` is
handed on to the runners.

The launcher's own files are in <experiment_dir>_jobs, so that AlgoPerf's
scoring can read the experiment directory as it is.
"""

import argparse
import collections
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

from lab.core import checkpoint_files, command_line, logs
from lab.core.errors import InputError
from lab.core.frameworks import framework_of
from lab.core.text_tables import text_table
from lab.launch import (
  benchmark,
  checks,
  executors,
  jobs,
  launch_plan,
  recovery,
)
from lab.launch.launch_plan import Plan, Run
from lab.workloads import WORKLOADS as LOCAL

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXECUTORS = ('local', 'slurm', 'print')
_FOLDERS = {'external': 'external_tuning', 'self': 'self_tuning'}
# Of the machine that the benchmark's times are measured on.
_BENCHMARK_GPUS = 4
# Two days.
_TIMEOUT_MIN = 2880


def _positive(text: str) -> int:
  value = int(text)
  if value < 1:
    raise ValueError(text)
  return value


def _natural(text: str) -> int:
  value = int(text)
  if value < 0:
    raise ValueError(text)
  return value


_positive.__name__ = 'positive integer'
_natural.__name__ = 'non-negative integer'


def _parser() -> command_line.Parser:
  parser = command_line.Parser('python -m lab.launch', description=__doc__)
  parser.formatter_class = command_line.Formatter
  add = parser.add_argument
  add('--submissions', required=True, help='names with commas, or all')
  add(
    '--workloads',
    required=True,
    help='names with commas, among them all: those that AlgoPerf scores, and '
    'local: those of this repository',
  )
  add('--studies', type=_positive, default=3)
  add('--trials', type=_positive, help='5; 1 under self-tuning')
  add('--executor', choices=EXECUTORS, default='local')
  add('--status', action='store_true', help='show states and run nothing')
  add('--tuning_ruleset', choices=sorted(_FOLDERS), default='external')
  add('--tuning_search_space', help="instead of each submission's own")
  add('--export_dir', type=pathlib.Path, help='run what lab.export wrote here')
  add('--experiment_dir', type=pathlib.Path, required=True)
  add('--data_dir', default='~/data', help="of the benchmark's data sets")
  add('--rng_seed', type=_natural, default=0, help='all seeds are made from it')
  add('--max_global_steps', type=_positive, help='end runs earlier')
  add('--keep_checkpoints', action='store_true', help='not only the last two')
  add('--nodes', type=_positive, default=1, help='of one run')
  add('--gpus_per_node', type=_natural, help='those of this machine')
  add('--processes_per_node', type=_natural, help='one on each GPU')
  add('--no_data_check', action='store_true', help='data are on the nodes only')
  add('--timeout_min', type=_positive, help=f'of a Slurm job ({_TIMEOUT_MIN})')
  add(
    '--slurm',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='an option of sbatch, such as partition=gpu; may be repeated',
  )
  return parser


def _known_submissions(plan_root: pathlib.Path, folder: str) -> list[str]:
  paths = plan_root.glob(f'{folder}/*/submission.py')
  return sorted(path.parent.name for path in paths)


def _workloads(text: str) -> list[str]:
  """Split a list of names, in which `all` and `local` stand for several."""
  groups = {'all': list(benchmark.SCORED), 'local': sorted(LOCAL)}
  names = [
    name
    for word in text.split(',')
    for name in groups.get(word.strip(), [word.strip()])
  ]
  allowed = [*benchmark.BASE_OF, *sorted(LOCAL)]
  return command_line.names_of(','.join(names), allowed, 'workload')


def hours_of(plan: Plan, runs: list[Run]) -> float:
  """Return the most hours that runs of the benchmark can be billed in sum.

  Evaluations, checkpoints and the loading of models are not billed and come on
  top.
  """
  factor = 1.5 if plan.ruleset == 'self' else 1.0
  return (
    sum(
      factor * benchmark.BASES[benchmark.BASE_OF[run.workload]].max_runtime_sec
      for run in runs
      if not run.is_local
    )
    / 3600.0
  )


def _gpus(values: argparse.Namespace, runs_benchmark: bool) -> int:
  if values.gpus_per_node is not None:
    return values.gpus_per_node
  import torch

  here = torch.cuda.device_count()
  elsewhere = values.executor != 'local' and runs_benchmark
  return here or (_BENCHMARK_GPUS if elsewhere else 0)


def parse(
  argv: Sequence[str] | None = None,
) -> tuple[argparse.Namespace, Plan, list[Run]]:
  """The command line, what all runs have in common, and the runs.

  Raises:
    InputError: something given is not known or contradicts something else.
  """
  words = list(sys.argv[1:] if argv is None else argv)
  extra: list[str] = []
  if '--' in words:
    words, extra = words[: words.index('--')], words[words.index('--') + 1 :]
  values = _parser().parse_args(words)
  experiment_dir = pathlib.Path(
    os.path.abspath(values.experiment_dir.expanduser())
  )
  if not experiment_dir.name:
    raise InputError(
      f'Invalid experiment_dir={values.experiment_dir}. Must have a name, to '
      "which the launcher's own folder adds _jobs."
    )
  root = (values.export_dir or ROOT).resolve()
  folder = 'submissions'
  if values.export_dir is not None:
    folder = _FOLDERS[values.tuning_ruleset]
  known = _known_submissions(root, folder)
  if not known:
    raise InputError(f'No submissions in {root / folder}. See lab.export.')
  submissions = command_line.names_of(values.submissions, known, 'submission')
  workloads = _workloads(values.workloads)
  trials = values.trials
  if values.tuning_ruleset == 'self':
    if trials not in (None, 1):
      raise InputError(f'Invalid trials={trials}. Must be 1: self-tuning.')
    if values.tuning_search_space is not None:
      raise InputError(
        'Invalid tuning_search_space. Must be none: self-tuning.'
      )
    trials = 1
  trials = trials or 5
  of_slurm = {
    'timeout_min': values.timeout_min,
    'slurm': next(iter(values.slurm), None),
  }
  for name, value in of_slurm.items():
    if value and values.executor != 'slurm':
      raise InputError(
        f'Invalid {name}={value!r}. It has no effect with --executor '
        f'{values.executor}.'
      )
  runs_benchmark = any(name not in LOCAL for name in workloads)
  values.gpus_per_node = _gpus(values, runs_benchmark)
  processes = values.processes_per_node
  if processes is None:
    processes = values.gpus_per_node
  space = values.tuning_search_space
  plan = Plan(
    root=root,
    exported=values.export_dir is not None,
    experiment_dir=experiment_dir,
    data_dir=os.path.abspath(os.path.expanduser(values.data_dir)),
    ruleset=values.tuning_ruleset,
    search_space=None if space is None else os.path.abspath(space),
    trials=trials,
    seed=values.rng_seed,
    nodes=values.nodes,
    processes=processes,
    max_global_steps=values.max_global_steps,
    keep_checkpoints=values.keep_checkpoints,
    extra=tuple(extra),
  )
  runs = launch_plan.runs_of(submissions, workloads, values.studies, trials)
  return values, plan, runs


def states(
  plan: Plan, runs: list[Run], files: jobs.Files
) -> dict[Run, tuple[str, str]]:
  """State of every run, and a note about it.

  finished; running; queued, by Slurm; cut off, with a complete checkpoint to
  resume from; failed, without one; waiting.
  """
  records = {run: logs.read_object(str(files.record(run))) for run in runs}
  alive = executors.alive(
    [r['job_id'] for r in records.values() if r.get('job_id')], files.folder
  )
  result = {}
  for run in runs:
    record = records[run]
    state, note = launch_plan.state_of(plan, run), ''
    status = record.get('exit_status')
    if state == 'cut off':
      note = _resumption(plan.directory(run))
      if framework_of(run.submission) == 'jax' and not run.is_local:
        note += 'AlgoPerf cannot resume JAX without the change in docs/jax.md; '
    if state != 'finished':
      if status:
        note = f'{note}exit status {status}, see {files.log(run)}'
        state = 'failed' if state == 'waiting' else state
      if jobs.is_running(files, run):
        state, note = 'running', ''
      elif record.get('job_id') in alive:
        state, note = 'queued', f'Slurm job {record["job_id"]}'
    result[run] = (state, note)
  return result


def _resumption(directory: pathlib.Path) -> str:
  """Return a note if a checkpoint is incomplete and an older one is used."""
  last = recovery.complete_steps(directory)[-1]
  steps = checkpoint_files.steps(str(directory))
  broken = [f'checkpoint_{step}' for step in steps if step > last]
  if not broken:
    return ''
  return f'{", ".join(broken)} incomplete, resumes from step {last}; '


def table(plan: Plan, found: dict[Run, tuple[str, str]]) -> str:
  """Format the table of --status."""
  lines = []
  for run, (state, note) in found.items():
    directory = plan.directory(run)
    end = launch_plan.last_score(directory) or {}
    step = launch_plan.last_evaluation(directory)
    lines.append(
      [
        run.submission,
        run.workload,
        str(run.study),
        str(run.trial),
        state,
        '' if step is None else str(step),
        f'{float(end["score"]):.1f}' if end else '',
        note,
      ]
    )
  header = [
    'submission',
    'workload',
    'study',
    'trial',
    'state',
    'evaluated at',
    'seconds',
    '',
  ]
  counts = collections.Counter(state for state, _ in found.values())
  summary = ', '.join(f'{count} {state}' for state, count in counts.items())
  return f'{text_table(header, lines)}\n\n{len(found)} runs: {summary}'


def main(argv: Sequence[str] | None = None) -> int:
  """Start what is neither finished nor under way; the exit status."""
  values, plan, runs = parse(argv)
  files = jobs.Files(
    plan.experiment_dir.with_name(f'{plan.experiment_dir.name}_jobs')
  )
  if values.status:
    try:
      checks.check_recorded(plan, runs)
    except InputError as error:
      print(f'warning: {error}', file=sys.stderr)
    print(table(plan, states(plan, runs, files)))
    return 0
  checks.check(values, plan, runs)
  if values.executor == 'print':
    executors.show(plan, runs)
    return 0
  found = states(plan, runs, files)
  under_way = ('finished', 'running', 'queued')
  todo = [run for run, (state, _) in found.items() if state not in under_way]
  print(f'{len(runs) - len(todo)} of {len(runs)} runs done or under way.')
  hours = hours_of(plan, todo)
  if hours:
    gpus = plan.nodes * plan.processes or 1
    print(
      f'The others are billed at most {hours:.1f} hours '
      f'({gpus * hours:.0f} GPU hours); evaluations come on top.'
    )
  if values.executor == 'slurm':
    options: dict[str, Any] = {
      'timeout_min': values.timeout_min or _TIMEOUT_MIN,
      'gpus_per_node': values.gpus_per_node,
    }
    executors.submit(plan, todo, files, 'slurm', options, values.slurm)
    return 0
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  return executors.run_here(plan, todo, files)
