r"""Run a submission on a local workload, as AlgoPerf's submission_runner does.

  python -m lab.run --workload=click_dlrm \
      --submission_path=submissions/nadamw_ema/submission.py \
      --tuning_search_space=tuning_search_spaces/nadamw_ema.json \
      --experiment_dir=runs --experiment_name=first --rng_seed=0

Several processes: torchrun --standalone --nproc_per_node=2 -m lab.run ...
"""

import datetime
import os
import shutil
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import flags, logging

import lab.run.flags
from lab.core import checkpoint_files, command_line, logs
from lab.core.errors import InputError
from lab.run import (
  distributed,
  light_checkpoints,
  profile_report,
  validation,
)
from lab.run.distributed import Context
from lab.run.run_state import RunState
from lab.run.settings import Settings
from lab.run.trial import Trial, TrialRun, initial_state
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
  if settings.overwrite and os.path.exists(settings.log_dir):
    logging.info('Removing %s.', settings.log_dir)
    shutil.rmtree(settings.log_dir)
  for trial in trials:
    os.makedirs(trial.directory, exist_ok=True)
    path = os.path.join(trial.directory, logs.HPARAMS)
    if trial.hyperparameters is not None and not os.path.exists(path):
      logs.write_json(path, trial.hyperparameters._asdict())


def _check_kept(trials: list[Trial]) -> None:
  """Check the folders of lab.offline, and the accumulators to be resumed."""
  for trial in trials:
    settings = trial.settings
    light_checkpoints.check(settings, trial.budget)
    steps = checkpoint_files.steps(trial.directory)
    if settings.posthoc_every and settings.resume_last_run and steps:
      # On all ranks: to wrap a model may be a collective.
      model = initial_state(trial).model_params
      if trial.context.is_main:
        light_checkpoints.Keeper(settings, trial.directory, model, steps[-1])


def _run_trial(trial: Trial, flag_values: dict[str, Any]) -> RunState:
  recorder = profile_report.NestedRecorder(trial.settings.profile)
  with recording(recorder):
    state = TrialRun(trial, flag_values).run()
  if trial.context.is_main:
    report = recorder.report()
    logs.write_json(os.path.join(trial.directory, 'profile.json'), report)
    if trial.settings.profile:
      print(profile_report.table(report), flush=True)
  return state


def run(
  settings: Settings, context: Context, flag_values: dict[str, Any]
) -> list[RunState]:
  """Run all trials and return their final states.

  Args:
    settings: The command line.
    context: This process's place among all.
    flag_values: What flags_<n>.json records.

  Raises:
    InputError: something given cannot be used; nothing was written or deleted.
  """
  if settings.append_timestamp:
    stamp = datetime.datetime.now().strftime('%Y-%m-%d-%H-%M-%S')
    settings = validation.with_timestamp(settings, context.broadcast(stamp))
  seed = context.broadcast(struct.unpack('I', os.urandom(4))[0])
  trials = _agreed(context, lambda: validation.prepare(settings, context, seed))
  _agreed(context, lambda: validation.check(trials))
  _agreed(context, lambda: _check_kept(trials))
  if context.is_main:
    _make_directories(settings, trials)
  context.barrier()
  states = []
  for trial in trials:
    logging.info('%s, seed %d', trial.directory, trial.rng_seed)
    state = _run_trial(trial, flag_values)
    logging.info(
      'Ended at step %d after %.1f billed seconds.',
      state.global_step,
      state.train_state['accumulated_submission_time'],
    )
    states.append(state)
  return states


def _fail(context: Context | None, error: InputError) -> NoReturn:
  # The line is out before any process ends: torchrun kills the others then.
  if context is None or context.is_main:
    command_line.print_error(error)
  if context is not None:
    context.barrier()
  distributed.stop()
  sys.exit(1)


def _main(arguments: Sequence[str]) -> None:
  context = None
  try:
    context = distributed.start()
    if len(arguments) > 1:
      raise InputError(
        f'Unexpected argument {arguments[1]!r}. Must be flags, --name=value.'
      )
    if not context.is_main:
      logging.set_verbosity(logging.ERROR)
    run(lab.run.flags.settings(), context, flags.FLAGS.flag_values_dict())
  except InputError as error:
    _fail(context, error)
  distributed.stop()


def main() -> None:
  """Parse the command line and run."""
  flags.mark_flags_as_required(lab.run.flags.REQUIRED)
  command_line.run_with_flags(_main)
