"""Processes of the local runner that are killed, and what they leave.

A fork server has torch and the runner imported. Each run is a process of its
own, forked from it, that executes `lab.run` with a command line.
"""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import fakes
import fork_server
import jax_support
import torch

from lab.core import checkpoint_files
from lab.run import checkpoints, runner
from lab.run.trial import TrialRun
from weightavg import spec

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMES = ('score', 'total_duration', 'preemption_count')
# Windows of a run in which a kill is harmful, beside all of it.
PHASES = ('anywhere', 'writing', 'shown', 'logging')

if jax_support.HAS_JAX:
  # Imported once, by the server; a backend exists only in the runs.
  import fault_jax
  import flax.serialization  # noqa: F401
  import optax  # noqa: F401

  import weightavg.jax.trainer  # noqa: F401


def submissions() -> list[str]:
  """Names of the submissions in the folder that can run here."""
  names = sorted(p.parent.name for p in ROOT.glob('submissions/*/*.py'))
  names = list(dict.fromkeys(n for n in names if n != 'submissions'))
  return [n for n in names if jax_support.HAS_JAX or not n.endswith('_jax')]


def placements(submission: str) -> list[str | None]:
  """Placements that a submission's average can have; None without one."""
  words = submission.removesuffix('_jax').split('_')
  if len(words) == 1:
    return [None]
  published = ROOT / 'tuning_search_spaces' / f'{submission}.json'
  point = json.loads(published.read_text())[0]
  if 'averaging_interpolation' in point or 'schedule_free' in submission:
    # An average that takes part in training is beside the weights.
    return ['device']
  if submission.endswith('_jax'):
    return ['device', 'sharded']
  return ['device', 'cpu', 'sharded']


@dataclasses.dataclass(frozen=True)
class Case:
  """A kind of run.

  Args:
    submission: Name of a folder in submissions/.
    placement: Of the average; None for the submission's own.
    keeps_all: Whether earlier checkpoints stay.
    light: Whether light checkpoints and accumulators are kept.
  """

  submission: str
  placement: str | None = None
  keeps_all: bool = True
  light: bool = False

  @property
  def framework(self) -> str:
    """'jax' or 'pytorch'."""
    return 'jax' if self.submission.endswith('_jax') else 'pytorch'

  @property
  def name(self) -> str:
    """A name for files."""
    return (
      f'{self.submission}-{self.placement or "own"}'
      f'{"" if self.keeps_all else "-latest"}{"-light" if self.light else ""}'
    )

  def arguments(self, folder: pathlib.Path, *flags: str) -> list[str]:
    """Command line of a run in a folder, after its search space is written."""
    folder.mkdir(parents=True, exist_ok=True)
    published = ROOT / 'tuning_search_spaces' / f'{self.submission}.json'
    point = json.loads(published.read_text())[0]
    if 'dropout_rate' in point:
      point['dropout_rate'] = 0.2
    if 'averaging_horizon' in point:
      # Several samples in an average of the 20 steps.
      point['averaging_horizon'] = 0.25
    if self.placement is not None:
      point['averaging_placement'] = self.placement
    (folder / 'space.json').write_text(json.dumps([point]))
    light = ['--save_every=3', '--posthoc_every=4', '--keep=3']
    return [
      f'--workload={"stdlib_lm" if self.framework == "jax" else "click_dlrm"}',
      f'--framework={self.framework}',
      f'--submission_path=submissions/{self.submission}/submission.py',
      f'--tuning_search_space={folder / "space.json"}',
      f'--experiment_dir={folder}',
      '--experiment_name=x',
      '--rng_seed=0',
      *([] if self.keeps_all else ['--nosave_intermediate_checkpoints']),
      *(light if self.light else []),
      *flags,
    ]

  def trial(self, folder: pathlib.Path) -> pathlib.Path:
    """Directory of the trial."""
    workload = 'stdlib_lm' if self.framework == 'jax' else 'click_dlrm'
    return folder / 'x' / f'{workload}_{self.framework}' / 'trial_1'


class Watch:
  """Counts the calls of Python functions, and of C functions from them.

  Args:
    kill_at: Number of the call at which the process kills itself.
  """

  def __init__(self, kill_at: int | None = None) -> None:
    self.count = 0
    self.kill_at = kill_at
    self.windows: dict[str, list[list[int]]] = {p: [] for p in PHASES}
    # Code whose call or return begins or ends a window.
    save = checkpoints.save.__code__
    prepare = TrialRun._prepare_for_eval.__code__
    update = TrialRun._update.__code__
    evaluate = spec.Workload.eval_model.__code__
    log = TrialRun._log.__code__
    self._begins = {
      ('call', save): 'writing',
      ('return', prepare): 'shown',
      ('return', evaluate): 'logging',
    }
    self._ends = {
      ('return', save): 'writing',
      ('call', update): 'shown',
      ('return', log): 'logging',
    }

  def __call__(self, frame: Any, event: str, argument: Any) -> None:
    """Receive an event of sys.setprofile."""
    self.count += 1
    if self.count == self.kill_at:
      os.kill(os.getpid(), signal.SIGKILL)
    if self.kill_at is None and event in ('call', 'return'):
      key = (event, frame.f_code)
      if phase := self._begins.get(key):
        self.windows[phase].append([self.count, self.count])
      if (phase := self._ends.get(key)) and self.windows[phase]:
        self.windows[phase][-1][1] = self.count

  def written(self) -> dict[str, list[list[int]]]:
    """Windows by phase, as first and last call."""
    return {**self.windows, 'anywhere': [[1, self.count]]}


def run_in_child(
  arguments: list[str],
  errors: str,
  watch: str | None = None,
  kill_at: int | None = None,
  workload: dict[str, Any] | None = None,
) -> None:
  """Run the local runner in this process, which is a fork.

  Args:
    arguments: Command line.
    errors: File that receives standard output and error.
    watch: File that receives the windows of the run.
    kill_at: See `Watch`.
    workload: Attributes of the tiny workload.
  """
  descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(descriptor, 1)
  os.dup2(descriptor, 2)
  sys.stdout = os.fdopen(1, 'w')
  sys.stderr = os.fdopen(2, 'w')
  torch.set_num_threads(1)
  os.chdir(ROOT)
  fakes.register(None, 'click_dlrm', **(workload or {}))
  if '--framework=jax' in arguments:
    fault_jax.register()
  sys.argv = ['lab.run', *arguments]
  seen = Watch(kill_at)
  try:
    if watch is not None or kill_at is not None:
      sys.setprofile(seen)
    runner.main()
  finally:
    sys.setprofile(None)
    if watch is not None:
      pathlib.Path(watch).write_text(json.dumps(seen.written()))
    sys.stdout.flush()
    sys.stderr.flush()


class Server:
  """Starts runs as processes of their own.

  Args:
    folder: For standard output and error of the runs.
  """

  def __init__(self, folder: pathlib.Path) -> None:
    self._context = fork_server.start()
    self._folder = folder
    self._number = 0

  def start(self, arguments: list[str], **options: Any) -> Any:
    """Start a run; the process, with the path of what it says as `said`."""
    self._number += 1
    said = self._folder / f'said_{self._number}'
    process = self._context.Process(
      target=run_in_child, args=(arguments, str(said)), kwargs=options
    )
    process.start()
    process.said = said
    return process

  def run(self, arguments: list[str], **options: Any) -> tuple[int, str]:
    """Run to the end; the exit status, negative for a signal, and the text."""
    process = self.start(arguments, **options)
    process.join()
    return process.exitcode, process.said.read_text(errors='replace')


def resumed(case: Case, folder: pathlib.Path, *flags: str) -> list[str]:
  """Command line of the user's next start after a run has ended early."""
  steps = checkpoint_files.steps(str(case.trial(folder)))
  next_flag = '--resume_last_run' if steps else '--overwrite'
  return case.arguments(folder, next_flag, *flags)


def rows(path: pathlib.Path) -> list[dict[str, str]]:
  """Rows of a CSV file without times and the number of the resumption."""
  with open(path, newline='') as file:
    found = list(csv.DictReader(file))
  return [
    {
      key: value
      for key, value in row.items()
      if key not in TIMES and not key.startswith('accumulated_')
      # A column that only later rows have is empty before.
      if value
    }
    for row in found
  ]


def content(path: str, is_jax: bool) -> dict[str, Any]:
  """Content of a checkpoint without times."""
  if is_jax:
    from lab.run import jax_checkpoints

    trees, plain = jax_checkpoints.read(path)
    loaded = trees | plain
  else:
    loaded = torch.load(path, weights_only=True)
  kept = ('model_params', 'optimizer_state', 'model_state', 'global_step')
  return {key: loaded[key] for key in kept} | {
    'evaluations': [
      [step, {k: v for k, v in metrics.items() if '/' in k}]
      for step, metrics in loaded['eval_results']
    ]
  }


def _differences(a: Any, b: Any, where: str) -> list[str]:
  if hasattr(a, 'tobytes') and hasattr(b, 'tobytes'):
    same = a.dtype == b.dtype and a.shape == b.shape
    return [] if same and a.tobytes() == b.tobytes() else [where]
  if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
    parts = [_differences(a[k], b[k], f'{where}/{k}') for k in a]
    return [path for part in parts for path in part]
  return fakes.differences(a, b, where)


def losses(case: Case, whole: pathlib.Path, cut: pathlib.Path) -> list[str]:
  """Everything in which a resumed run differs from an undisturbed one.

  Weights, averages, the optimizer's state and metrics bit by bit, rows of the
  measurements, light checkpoints and snapshots; and files that should be gone.
  """
  a, b = case.trial(whole), case.trial(cut)
  is_jax = case.framework == 'jax'
  found = []
  steps = [checkpoint_files.steps(str(t)) for t in (a, b)]
  if steps[0] != steps[1]:
    found.append(f'checkpoints {steps[1]}, not {steps[0]}')
  for step in steps[0]:
    paths = [checkpoint_files.path_of(str(t), step) for t in (a, b)]
    if not os.path.exists(paths[1]):
      continue
    found += _differences(
      *(content(path, is_jax) for path in paths), f'checkpoint_{step}'
    )
    if reason := checkpoints.damage(paths[1], is_jax):
      found.append(f'checkpoint_{step}: {reason}')
  for name in ('eval_measurements.csv', 'measurements.csv'):
    if rows(a / name) != rows(b / name):
      found.append(name)
  for pattern in ('weights/*.safetensors', 'posthoc/*.safetensors'):
    names = [{p.name for p in t.glob(pattern)} for t in (a, b)]
    if names[0] != names[1]:
      found.append(f'{pattern}: {sorted(names[0] ^ names[1])}')
    for name in names[0] & names[1]:
      parent = pattern.partition('/')[0]
      if (a / parent / name).read_bytes() != (b / parent / name).read_bytes():
        found.append(f'{parent}/{name}')
  left = [p for p in b.rglob('*') if 'temporary' in p.name]
  return found + [f'left behind: {path.name}' for path in left]


@contextlib.contextmanager
def mounted(size: str) -> Iterator[pathlib.Path]:
  """A file system of its own, in memory; OSError where that is impossible."""
  # Not in pytest's folder: a mount that a killed pytest leaves stays there.
  folder = pathlib.Path(tempfile.mkdtemp(prefix='weightavg_disk_'))
  command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
  try:
    done = subprocess.run(command, capture_output=True, text=True)
  except OSError as error:
    raise OSError('there is no mount command') from error
  if done.returncode:
    folder.rmdir()
    raise OSError(done.stderr.strip() or 'mount failed')
  try:
    yield folder
  finally:
    subprocess.run(['umount', '-l', str(folder)], check=True)
    folder.rmdir()


def remount(folder: pathlib.Path, options: str) -> None:
  """Change the options of a file system made by `mounted`."""
  command = ['mount', '-o', f'remount,{options}', str(folder)]
  subprocess.run(command, check=True, capture_output=True)
