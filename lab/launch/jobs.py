"""One run from start to end, wherever it is started: here or by Slurm.

A lock that the operating system drops with its process tells whether a run is
alive, so that nothing has to be cleaned up after a kill and no run starts
twice. What a run without a checkpoint left behind is removed before it starts
again: the benchmark would add to its measurements, and they would be scored.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from lab.core import logs
from lab.core.errors import InputError
from lab.core.frameworks import framework_of
from lab.launch import benchmark, launch_plan, recovery
from lab.launch.launch_plan import Plan, Rendezvous, Run

# Until a run that was asked to end is killed.
_SECONDS_TO_END = 30


@dataclasses.dataclass(frozen=True)
class Files:
  """The launcher's own files; outside of what the benchmark scores.

  Args:
    folder: The launcher's folder.
  """

  folder: pathlib.Path

  def _path(self, run: Run, suffix: str) -> pathlib.Path:
    return self.folder / f'{run.name}{suffix}'

  def log(self, run: Run) -> pathlib.Path:
    """Path of the run's printed output."""
    return self._path(run, '.log')

  def record(self, run: Run) -> pathlib.Path:
    """Path of the JSON record of the run's start and end."""
    return self._path(run, '.json')

  def lock(self, run: Run) -> pathlib.Path:
    """Held while the run is alive."""
    return self._path(run, '.lock')

  def order(self, run: Run) -> pathlib.Path:
    """Held while a trial of a local workload runs: one at a time."""
    return self._path(run, '').parent / 'order.lock'


@contextlib.contextmanager
def held(path: pathlib.Path, wait: bool = False) -> Iterator[int | None]:
  """Hold a lock file: its descriptor, or None where another holds it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield None
      return
    yield file.fileno()


def is_running(files: Files, run: Run) -> bool:
  """Return True if a process holds the run's lock."""
  if not files.lock(run).exists():
    return False
  with held(files.lock(run)) as lock:
    return lock is None


def update_record(files: Files, run: Run, **values: Any) -> None:
  """Add to what is recorded about a run."""
  path = files.record(run)
  path.parent.mkdir(parents=True, exist_ok=True)
  logs.write_json(str(path), logs.read_object(str(path)) | values)


def clear(plan: Plan, run: Run) -> None:
  """Make a trial's directory fit to be started from, or to be resumed."""
  directory = plan.directory(run)
  if recovery.prepare(directory) is None:
    with contextlib.suppress(OSError):
      directory.parent.rmdir()  # only if no other trial is there


def rendezvous_of(plan: Plan) -> Rendezvous | None:
  """Return the rendezvous address of this Slurm job's nodes."""
  if plan.nodes == 1:
    return None
  import submitit

  environment = submitit.JobEnvironment()
  number = int(environment.job_id.replace('_', ''))
  # Two jobs may share a node: each has a port of its own.
  port = 20_000 + number % 10_000
  return Rendezvous(
    f'{environment.hostnames[0]}:{port}',
    environment.job_id,
    environment.node == 0,
  )


class Job:
  """A run as a function that submitit can pickle, stop and submit again.

  Args:
    plan: What all runs have in common.
    run: The run.
    files: The launcher's files.
  """

  def __init__(self, plan: Plan, run: Run, files: Files) -> None:
    self.plan = plan
    self.run = run
    self.files = files
    self._process: subprocess.Popen | None = None

  def __call__(self) -> int:
    """Run to the end; the exit status.

    Raises:
      InputError: it is running already, or data are missing on this machine.
    """
    rendezvous = rendezvous_of(self.plan)
    if rendezvous is not None and not rendezvous.is_host:
      # The first node prepares; torchrun waits for it at the rendezvous.
      return self._execute(rendezvous)
    with contextlib.ExitStack() as stack:
      lock = stack.enter_context(held(self.files.lock(self.run)))
      if lock is None:
        raise InputError(f'{self.run.name} is running already.')
      if self.run.is_local:
        stack.enter_context(held(self.files.order(self.run), wait=True))
      else:
        benchmark.check_data(
          self.run.workload,
          self.plan.data_dir,
          framework_of(self.run.submission),
        )
      if launch_plan.state_of(self.plan, self.run) == 'finished':
        return 0
      clear(self.plan, self.run)
      if not self.run.is_local and not self.plan.keep_checkpoints:
        stack.enter_context(recovery.Pruner(self.plan.directory(self.run)))
      return self._execute(rendezvous, lock)

  def _execute(
    self, rendezvous: Rendezvous | None, lock: int | None = None
  ) -> int:
    resume = launch_plan.has_checkpoints(self.plan, self.run)
    words = launch_plan.command(self.plan, self.run, resume, rendezvous)
    first = rendezvous is None or rendezvous.is_host
    path = self.files.log(self.run)
    if not first:
      path = path.with_suffix(f'.node_{os.environ.get("SLURM_NODEID")}.log')
    path.parent.mkdir(parents=True, exist_ok=True)
    # One thread per process, as torchrun would set with a warning.
    environment = {'OMP_NUM_THREADS': '1', **os.environ}
    if self.run.is_local:
      environment['PYTHONPATH'] = _with_lab(environment.get('PYTHONPATH'))
    with open(path, 'ab') as file:
      self._process = subprocess.Popen(
        launch_plan.executable(words),
        cwd=self.plan.root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=file,
        # The lock outlives this process, should it be killed, with the run.
        pass_fds=() if lock is None else (lock,),
      )
      try:
        # Before `wait`, which holds a lock of `Popen` until the end: submitit
        # calls `checkpoint` in a handler of signals, which would need it.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        status = self._process.wait()
      finally:
        self.stop()
        self._process.poll()
    if first:
      update_record(self.files, self.run, exit_status=status, command=words)
    return status

  def stop(self) -> None:
    """End the processes if they still run.

    May be called by a handler of signals, wherever it has interrupted this
    thread: `Popen` may hold its lock there, so none of its methods are used.
    """
    process = self._process
    if process is None or _has_ended(process):
      return
    os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + _SECONDS_TO_END
    while not _has_ended(process):
      if time.monotonic() > deadline:
        os.kill(process.pid, signal.SIGKILL)
      time.sleep(0.05)

  def checkpoint(self) -> Any:
    """Return the job that submitit queues after a preemption: it resumes."""
    import submitit

    self.stop()
    again = Job(self.plan, self.run, self.files)
    return submitit.helpers.DelayedSubmission(again)


def _has_ended(process: subprocess.Popen) -> bool:
  """Tell if a process has ended, and leave its status to `Popen`."""
  if process.returncode is not None:
    return True
  options = os.WEXITED | os.WNOWAIT | os.WNOHANG
  try:
    return os.waitid(os.P_PID, process.pid, options) is not None
  except ChildProcessError:
    return True  # `Popen` has fetched the status and not noted it yet


def _with_lab(path: str | None) -> str:
  """PYTHONPATH with this repository: the laboratory may not be installed."""
  here = str(pathlib.Path(__file__).resolve().parents[2])
  return here if not path else f'{here}{os.pathsep}{path}'
