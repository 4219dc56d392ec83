"""Ways to run a list of runs: here, by submitit, or by whoever reads them."""

import pathlib
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from lab.core.errors import InputError
from lab.launch import jobs, launch_plan
from lab.launch.launch_plan import Plan, Rendezvous, Run

# States of Slurm jobs that are still to come to an end.
_ALIVE = {
  'PENDING',
  'RUNNING',
  'REQUEUED',
  'RESIZING',
  'SUSPENDED',
  'CONFIGURING',
  'COMPLETING',
}


def show(plan: Plan, runs: Sequence[Run]) -> None:
  """Print the commands of all runs that are not finished."""
  print(f'cd {shlex.quote(str(plan.root))}')
  for run in runs:
    state = launch_plan.state_of(plan, run)
    if state == 'finished':
      print(f'# finished: {run.name}')
      continue
    rendezvous = None
    if plan.nodes > 1:
      # To be started on every node, with the first one's name in HEAD_NODE.
      identity = run.name.replace('/', '-')
      rendezvous = Rendezvous('$HEAD_NODE:29500', identity)
    # An incomplete checkpoint alone is nothing for the local runner.
    resume = (
      state == 'cut off'
      if run.is_local
      else launch_plan.has_checkpoints(plan, run)
    )
    words = launch_plan.command(plan, run, resume, rendezvous)
    if run.is_local and not resume and plan.directory(run).exists():
      # Left by a run without a complete checkpoint, as `jobs.clear` removes it.
      words.append('--overwrite')
    text = shlex.join(words)
    print(text.replace("'--rdzv_endpoint=$HEAD_NODE:29500'", _ENDPOINT))


_ENDPOINT = '--rdzv_endpoint="$HEAD_NODE":29500'


def run_here(plan: Plan, runs: Sequence[Run], files: jobs.Files) -> int:
  """Run one after the other; 1 if any failed or was not started, else 0."""
  failed = skipped = 0
  for number, run in enumerate(runs, 1):
    print(f'[{number}/{len(runs)}] {run.name}', flush=True)
    log = files.log(run)
    # Attempts before this one are in the same file.
    begin = log.stat().st_size if log.exists() else 0
    try:
      status = jobs.Job(plan, run, files)()
    except (KeyboardInterrupt, SystemExit):
      print('  stopped. The same command goes on.', flush=True)
      raise
    except InputError as error:
      skipped += 1
      print(f'  not started: {error}', flush=True)
      continue
    if status:
      failed += 1
      print(f'  failed: {_reason(log, begin)}', flush=True)
      print(f'  see {log}', flush=True)
  if failed:
    print(f'{failed} of {len(runs)} runs failed.')
  if skipped:
    print(f'{skipped} of {len(runs)} runs were not started.')
  return 1 if failed or skipped else 0


# From our own line to whatever may tell the reason. What torchrun adds about
# its processes names an exception without a message.
_REASONS = (
  re.compile(r'error: '),
  re.compile(r'(\[rank\d+\]: )?[\w.]+(Error|Exception): \S'),
  re.compile(r'.*error', re.IGNORECASE),
  re.compile(''),
)


def _reason(path: pathlib.Path, begin: int) -> str:
  """Return the line of a log, from a byte on, that tells why a run failed."""
  with open(path, 'rb') as file:
    file.seek(begin)
    lines = file.read().decode('utf-8', errors='replace').splitlines()
  for pattern in _REASONS:
    found = [line for line in lines if pattern.match(line)]
    if found:
      return found[-1].strip()
  return ''


def _submitit() -> Any:
  try:
    import submitit
  except ImportError as error:
    raise InputError(
      "submitit is not installed: pip install -e '.[launch]'."
    ) from error
  return submitit


def _pairs(options: Sequence[str]) -> dict[str, str]:
  for option in options:
    if '=' not in option or option.startswith(('-', '=')):
      raise InputError(
        f'Invalid slurm={option!r}. Must be KEY=VALUE, without dashes.'
      )
  return dict(option.split('=', 1) for option in options)


def _srun_arguments(options: dict[str, str]) -> list[str]:
  """Return what srun does not take over from sbatch."""
  # A node that fails must not leave the others waiting for it.
  arguments = ['--kill-on-bad-exit=1']
  given = {key.replace('_', '-'): value for key, value in options.items()}
  if 'cpus-per-task' in given:
    arguments.append(f'--cpus-per-task={given["cpus-per-task"]}')
  elif not {'cpus-per-gpu', 'exclusive'} & {*given}:
    print(
      'warning: Slurm may give each job one CPU, too few to load data. Give '
      '--slurm cpus-per-task=N or --slurm exclusive=user.',
      file=sys.stderr,
    )
  return arguments


def submit(
  plan: Plan,
  runs: Sequence[Run],
  files: jobs.Files,
  cluster: str,
  options: dict[str, Any],
  slurm: Sequence[str] = (),
) -> list[Any]:
  """Submit every run as a job of its own; the submitit jobs.

  Args:
    plan: What all runs have in common.
    runs: The runs.
    files: The launcher's files.
    cluster: 'slurm'; 'local' runs them all at once on this machine.
    options: Of submitit's executor.
    slurm: KEY=VALUE options of sbatch.

  Raises:
    InputError: submitit or Slurm is not there, or an option is not one.
  """
  submitit = _submitit()
  more = _pairs(slurm)
  if cluster == 'slurm' and shutil.which('sbatch') is None:
    raise InputError('No Slurm here: no command sbatch on the PATH.')
  if not runs:
    return []
  executor = submitit.AutoExecutor(files.folder / 'submitit', cluster=cluster)
  executor.update_parameters(
    name='weightavg', nodes=plan.nodes, tasks_per_node=1, **options
  )
  if cluster == 'slurm':
    executor.update_parameters(
      slurm_srun_args=_srun_arguments(more), slurm_additional_parameters=more
    )
  with executor.batch():
    submitted = [executor.submit(jobs.Job(plan, run, files)) for run in runs]
  for run, job in zip(runs, submitted, strict=True):
    jobs.update_record(files, run, job_id=job.job_id, exit_status=None)
    print(f'{job.job_id}  {run.name}')
  return submitted


def alive(job_ids: Sequence[str], folder: pathlib.Path) -> set[str]:
  """Return the Slurm jobs that wait or run; none without Slurm."""
  if not job_ids or shutil.which('sacct') is None:
    return set()
  submitit = _submitit()
  found = [
    submitit.SlurmJob(folder=folder / 'submitit', job_id=job_id)
    for job_id in job_ids
  ]
  return {job.job_id for job in found if job.state.split()[0] in _ALIVE}
