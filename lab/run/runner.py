r"""Run a submission on a local workload, as AlgoPerf's submission_runner does.

  python -m lab.run --workload=click_dlrm \
      --submission_path=submissions/nadamw_ema/submission.py \
      --tuning_search_space=tuning_search_spaces/nadamw_ema.json \
      --experiment_dir=runs --experiment_name=first --rng_seed=0

Several processes: torchrun --standalone --nproc_per_node=2 -m lab.run ...

After SIGTERM or SIGUSR1 the run ends with the current step, writes a checkpoint
and exits with status 75 (128 + the signal with --nosave_checkpoints and before
the first step). A process that torchrun has started again (--max-restarts)
resumes by itself.
"""

import contextlib
import datetime
import os
import shutil
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from absl import flags, logging

import lab.run.flags
from lab.core import checkpoint_files, command_line, logs
from lab.core.errors import InputError
from lab.run import (
  checkpoints,
  distributed,
  light_checkpoints,
  profile_report,
  validation,
)
from lab.run.distributed import Context
from lab.run.experiment_lock import ExperimentLock
from lab.run.interruption import Interrupted, Interruption
from lab.run.run_state import RunState
from lab.run.settings import Settings
from lab.run.trial import TrialRun
from lab.run.trial_setup import Trial, initial_state
from weightavg.pytorch.profiling import recording

flags.adopt_module_key_flags(lab.run.flags)


def _agreed(context: Context, function: Callable[[], Any]) -> Any:
  """Call on every rank; an InputError of one becomes an error of all."""
  error = result = None
  try:
    result = function()
  except InputError as raised:
    error = raised
  context.agree(error)
  return result


def _make_directories(settings: Settings, trials: list[Trial]) -> None:
  if settings.overwrite:
    # A command for some of the trials leaves the others alone.
    replaced = [settings.log_dir]
    if settings.takes_some_trials:
      replaced = [trial.directory for trial in trials]
    for path in filter(os.path.exists, replaced):
      logging.info('Removing %s.', path)
      shutil.rmtree(path)
  for trial in trials:
    os.makedirs(trial.directory, exist_ok=True)
    if trial.checkpoint is not None:
      used = checkpoint_files.step_of(trial.checkpoint)
      checkpoints.set_aside(trial.directory, after=used)
    path = os.path.join(trial.directory, logs.HPARAMS)
    # One that is damaged was left aside.
    is_known = isinstance(logs.read_json(path), dict)
    if trial.hyperparameters is not None and not is_known:
      logs.write_json(path, trial.hyperparameters._asdict())


def _check_kept(trials: list[Trial]) -> None:
  """Check the folders of lab.offline, and the accumulators to be resumed."""
  for trial in trials:
    settings = trial.settings
    light_checkpoints.check(settings, trial.budget)
    if settings.posthoc_every and trial.checkpoint is not None:
      # On all ranks: to wrap a model may be a collective.
      model = initial_state(trial).model_params
      if trial.context.is_main:
        step = checkpoint_files.step_of(trial.checkpoint)
        light_checkpoints.Keeper(settings, trial.directory, model, step)


def _run_trial(
  trial: Trial,
  flag_values: dict[str, Any],
  interruption: Interruption | None,
) -> RunState:
  recorder = profile_report.NestedRecorder(trial.settings.profile)
  try:
    with recording(recorder):
      state = TrialRun(trial, flag_values, (), interruption).run()
    if trial.context.is_main:
      report = recorder.report()
      logs.write_json(os.path.join(trial.directory, 'profile.json'), report)
      if trial.settings.profile:
        print(profile_report.table(report), flush=True)
  except (InputError, OSError) as error:
    raise RunError(error) from error
  except RuntimeError as error:
    if not _is_of_lost_process(trial.context, error):
      raise
    raise RunError(
      f'Lost the connection to another process of {trial.directory}. Use '
      '--resume_last_run to go on from its last checkpoint.'
    ) from error
  return state


def _is_of_lost_process(context: Context, error: RuntimeError) -> bool:
  """Tell if a collective has failed because a process has ended."""
  if context.world_size == 1:
    return False
  # Gloo raises plain RuntimeErrors with these words.
  words = ('Connection closed by peer', 'Connection reset', 'Broken pipe')
  is_known = isinstance(error, dist.DistBackendError | dist.DistNetworkError)
  return is_known or any(word in str(error) for word in words)


class RunError(Exception):
  """The end of a run that has begun, on one rank at least; one line."""

  def __init__(self, error: Exception | str) -> None:
    super().__init__(' '.join(str(error).split()))


def run(
  settings: Settings,
  context: Context,
  flag_values: dict[str, Any],
  interruption: Interruption | None = None,
) -> list[RunState]:
  """Run all trials and return their final states.

  Args:
    settings: The command line.
    context: This process's place among all.
    flag_values: What flags_<n>.json records.
    interruption: Tells if a signal has arrived; None ignores signals.

  Raises:
    InputError: something given cannot be used; nothing was written or deleted.
    RunError: a file cannot be written, or another process has ended.
    Interrupted: a signal has ended the run, which can be resumed.
  """
  if settings.append_timestamp:
    stamp = datetime.datetime.now().strftime('%Y-%m-%d-%H-%M-%S')
    settings = validation.with_timestamp(settings, context.broadcast(stamp))
  lock = ExperimentLock(settings.log_dir)
  _agreed(context, lock.check if context.is_main else lambda: None)
  seed = context.broadcast(struct.unpack('I', os.urandom(4))[0])
  trials = _agreed(context, lambda: validation.prepare(settings, context, seed))
  trials = _agreed(context, lambda: validation.check(trials))
  _agreed(context, lambda: _check_kept(trials))
  with contextlib.ExitStack() as stack:

    def take_over() -> None:
      if context.is_main:
        stack.enter_context(lock.held())
        # Another run may have used the directory since it was checked.
        validation.check_experiment(settings)
        try:
          _make_directories(settings, trials)
        except OSError as error:
          raise InputError(
            f'Cannot write to {settings.log_dir}: {error.strerror}.'
          ) from error

    _agreed(context, take_over)
    states = []
    for trial in trials:
      logging.info('%s, seed %d', trial.directory, trial.rng_seed)
      state = _run_trial(trial, flag_values, interruption)
      logging.info(
        'Ended at step %d after %.1f billed seconds.',
        state.global_step,
        state.train_state['accumulated_submission_time'],
      )
      states.append(state)
  return states


def _run_as_asked(arguments: Sequence[str]) -> int:
  """Run, and print why if a run did not end normally; return the status."""
  context = None
  interruption = Interruption()
  try:
    context = distributed.start()
    if len(arguments) > 1:
      raise InputError(
        f'Unexpected argument {arguments[1]!r}. Must be flags, --name=value.'
      )
    if not context.is_main:
      logging.set_verbosity(logging.ERROR)
    settings = validation.after_restart(lab.run.flags.settings(), context)
    flag_values = flags.FLAGS.flag_values_dict()
    with interruption.awaited():
      run(settings, context, flag_values, interruption)
  except InputError as error:
    # The line is out before any process ends: torchrun kills the others then.
    if context is None or context.is_main:
      command_line.print_error(error)
    if context is not None:
      context.barrier()
    return 1
  except RunError as error:
    # The other ranks may wait in a collective: torchrun ends them.
    command_line.print_error(error)
    sys.exit(1)
  except Interrupted as error:
    if context is None or context.is_main:
      print(error, file=sys.stderr, flush=True)
    return error.status
  return 0


def _main(arguments: Sequence[str]) -> None:
  status = _run_as_asked(arguments)
  distributed.stop()
  if status:
    sys.exit(status)


def main() -> None:
  """Parse the command line and run."""
  flags.mark_flags_as_required(lab.run.flags.REQUIRED)
  command_line.run_with_flags(_main)
