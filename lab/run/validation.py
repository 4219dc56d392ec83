"""Everything about a run that can be wrong, checked before anything is done.

`prepare` reads files, imports the submission, builds a model and an optimizer
state for every trial and loads the checkpoints it would resume from, all to be
thrown away: what passes here does not fail halfway through an experiment.
"""

import dataclasses
import functools
import importlib.util
import itertools
import os
import pathlib
import re
from typing import Any

from absl import logging

from lab import workloads
from lab.core import checkpoint_files, command_line, logs, search_space
from lab.core.errors import InputError
from lab.core.frameworks import framework_of
from lab.run import checkpoints, light_checkpoints, recorded, submissions
from lab.run.distributed import Context
from lab.run.experiment_lock import ExperimentLock, torchrun_job
from lab.run.settings import Settings
from lab.run.trial_setup import Trial, initial_state

_TRIAL = re.compile(r'trial_(\d+)')


def _workload(settings: Settings) -> Any:
  try:
    if settings.framework == 'jax':
      from lab.workloads import jax as twins

      workload = twins.build_workload(settings.workload)
    else:
      workload = workloads.build_workload(settings.workload)
    # Raise where nobody has set the workload's targets yet.
    _ = workload.validation_target_value, workload.test_target_value
  except ValueError as error:
    raise InputError(str(error)) from error
  return workload


def _check_framework(settings: Settings, context: Context) -> None:
  """Check the framework against the submission and the other flags."""
  folder = os.path.basename(os.path.dirname(settings.submission_path))
  needed = framework_of(folder)
  if needed == 'jax' and settings.framework != 'jax':
    raise InputError(
      f'Invalid framework={settings.framework!r}. Must be {needed!r} for '
      f'{settings.submission_path}.'
    )
  if settings.framework != 'jax':
    return
  if importlib.util.find_spec('jax') is None:
    raise InputError(
      "Invalid framework='jax'. It needs jax. Run: pip install -e '.[jax]'"
    )
  for name in ('torch_compile', 'save_every', 'posthoc_every'):
    value = getattr(settings, name)
    if value:
      raise InputError(
        f"Invalid {name}={value}. It has no effect with framework='jax'."
      )
  if context.world_size > 1:
    raise InputError(
      f'Invalid number of processes {context.world_size}. Must be 1 with '
      "framework='jax': one process drives all devices."
    )


def check_experiment(settings: Settings) -> None:
  """Check the experiment's directory against the flags about it.

  Raises:
    InputError: It exists, has nothing to resume, or cannot be written to.
  """
  path = settings.log_dir
  name = pathlib.Path(settings.experiment_name)
  if name.is_absolute() or not name.parts or '..' in name.parts:
    raise InputError(
      f'Invalid experiment_name={settings.experiment_name!r}. Must be the name '
      'of a folder in experiment_dir.'
    )
  if settings.resume_last_run and settings.overwrite:
    raise InputError(
      'Invalid flags: at most one of --resume_last_run and --overwrite.'
    )
  if settings.resume_last_run:
    if not recorded.trials_with_checkpoints(path):
      raise InputError(f'Nothing to resume: no checkpoint in {path}.')
  elif os.path.lexists(path):
    if not settings.overwrite:
      if not _holds_other_trials_only(settings):
        raise InputError(
          f'The experiment directory {path} exists. Use --overwrite to replace '
          'it or --resume_last_run to go on with it.'
        )
    elif os.path.islink(path) or not os.path.isdir(path):
      raise InputError(f'Cannot overwrite {path}: must be a directory.')
  command_line.check_writable(pathlib.Path(path))


def _holds_other_trials_only(settings: Settings) -> bool:
  """Tell if an experiment holds trials, and none of those to be run."""
  if not os.path.isdir(settings.log_dir):
    return False
  names = [n for n in os.listdir(settings.log_dir) if _TRIAL.fullmatch(n)]
  return bool(names) and not any(_is_included(settings, n) for n in names)


def _is_included(settings: Settings, directory: str) -> bool:
  """Tell if a directory is that of a trial to be run."""
  match = _TRIAL.fullmatch(os.path.basename(directory))
  return match is not None and settings.includes_trial(int(match[1]))


def _rng_seed(settings: Settings, drawn: int) -> int:
  """The given seed, that of the run to be resumed, or the drawn one.

  Raises:
    InputError: the given seed is another one than that of the run, or none is
      given and the run's files have lost it.
  """
  seed = settings.rng_seed
  if settings.resume_last_run:
    found = recorded.trials_with_checkpoints(settings.log_dir)
    # Other trials may be of other commands, with other seeds.
    own = [trial for trial in found if _is_included(settings, trial)]
    lost = None
    for directory in own or found:
      theirs = recorded.seed(directory)
      if theirs is None:
        lost = lost or directory
        continue
      if seed is not None and seed != theirs:
        raise InputError(
          f'Invalid rng_seed={seed}. Must be {theirs}, the seed of the run '
          f'in {directory}.'
        )
      seed = theirs
    if seed is None and lost:
      raise InputError(
        f'Cannot resume {lost}: no meta_data_<n>.json in it has the seed. '
        'Give its --rng_seed.'
      )
  return drawn if seed is None else seed


def _batch_sizes(
  settings: Settings,
  context: Context,
  workload: Any,
  submission: submissions.Submission,
) -> tuple[int, int]:
  names = list(workloads.WORKLOADS)
  train = submission.batch_size(
    settings.workload, names, getattr(workload, 'batch_size', None)
  )
  custom = getattr(submission.module, 'get_eval_batch_size', None)
  evaluation = custom(settings.workload) if custom else workload.eval_batch_size
  for name, size in (('batch size', train), ('eval batch size', evaluation)):
    if size < 1 or size % context.world_size:
      raise InputError(
        f'Invalid {name} {size} of {submission.path}. Must be a positive '
        f'multiple of the number of processes, {context.world_size}.'
      )
  return train, evaluation


def _points(settings: Settings, rng_seed: int) -> list[tuple[int, Any]]:
  """Numbers (from 1) and hyperparameters of the trials to run."""
  if settings.tuning_ruleset == 'self':
    if settings.tuning_search_space is not None:
      raise InputError(
        'Invalid flags: no --tuning_search_space with --tuning_ruleset=self.'
      )
    return [(1, None)]
  if settings.tuning_search_space is None:
    raise InputError(
      'Invalid flags: --tuning_ruleset=external needs --tuning_search_space.'
    )
  points = search_space.load(
    settings.tuning_search_space, settings.num_tuning_trials, rng_seed
  )
  if len(points) < settings.num_tuning_trials:
    logging.info(
      '%s has %d points: running that many trials.',
      settings.tuning_search_space,
      len(points),
    )
  chosen = itertools.islice(
    enumerate(points, 1),
    settings.hparam_start_index,
    settings.hparam_end_index,
  )
  result = [
    (number, search_space.as_hyperparameters(point)) for number, point in chosen
  ]
  if not result:
    raise InputError(
      f'No trials to run: hparam_start_index={settings.hparam_start_index}, '
      f'hparam_end_index={settings.hparam_end_index} of {len(points)} points.'
    )
  return result


def _saved_hyperparameters(directory: str, given: Any) -> Any:
  """Return the recorded hyperparameters of a trial, which override the file."""
  if given is None:
    return None
  path = os.path.join(directory, logs.HPARAMS)
  saved = logs.read_json(path)
  if not isinstance(saved, dict):
    if os.path.exists(path):
      logging.warning('%s is damaged: using the search space.', path)
    return given
  search_space.check_names(saved, path)
  if saved != given._asdict():
    logging.warning('Resuming with the hyperparameters in %s.', directory)
  return search_space.as_hyperparameters(saved)


def _damage(trial: Trial, step: int) -> str | None:
  """Return what is wrong with the checkpoint of a step, or None."""
  settings, directory = trial.settings, trial.directory
  path = checkpoint_files.path_of(directory, step)
  return checkpoints.damage(
    path, settings.framework == 'jax'
  ) or light_checkpoints.damage(settings, directory, step)


def _with_checkpoints(trials: list[Trial]) -> list[Trial]:
  """Choose the newest valid checkpoint of each trial, the same on all ranks.

  Raises:
    InputError: a trial has checkpoints, and none is valid.
  """
  context, found = trials[0].context, []
  if context.is_main:
    found = [
      checkpoints.newest(t.directory, functools.partial(_damage, t))
      for t in trials
    ]
  found = context.broadcast(found)
  for path, skipped in found:
    if path is None and skipped:
      raise InputError(f'Nothing to resume: {"; ".join(skipped[:3])}.')
    for line in skipped:
      logging.warning('Skipping %s. Resuming from %s.', line, path)
  return [
    dataclasses.replace(trial, checkpoint=path)
    for trial, (path, _) in zip(trials, found, strict=True)
  ]


def _check_trial(trial: Trial) -> None:
  """Initialise the trial and throw the result away."""
  where = (
    f'{trial.settings.tuning_search_space}, '
    f'{os.path.basename(trial.directory)}: '
  )
  saved = os.path.join(trial.directory, logs.HPARAMS)
  if trial.settings.resume_last_run and logs.read_object(saved):
    where = f'{saved}: '
  try:
    state = initial_state(trial)
  except ValueError as error:
    raise InputError(f'{where}{error}') from error
  except AttributeError as error:
    # A submission that reads a key which the point does not have.
    if error.obj is not trial.hyperparameters:
      raise
    raise InputError(f'{where}missing key {error.name!r}.') from error
  path = trial.checkpoint
  if path is None:
    return
  number = recorded.last_number(trial.directory)
  flags = os.path.join(trial.directory, f'flags_{number}.json')
  maker = logs.read_object(flags).get('submission_path')
  if isinstance(maker, str):
    before = submissions.module_name(maker)
    now = submissions.module_name(trial.settings.submission_path)
    if before != now:
      raise InputError(
        f'Cannot resume from {path}: made by submission {before}, not {now}.'
      )
  checkpoints.restore(state, path, trial.context.device)


def prepare(
  settings: Settings, context: Context, drawn_seed: int
) -> list[Trial]:
  """The trials of a run, from what the command line names.

  Args:
    settings: The command line.
    context: This process's place among all.
    drawn_seed: For a run that is given none; the same on every rank.

  Raises:
    InputError: something given cannot be used; nothing was written.
  """
  _check_framework(settings, context)
  workload = _workload(settings)
  submission = submissions.load(settings.submission_path)
  if settings.framework == 'jax' and submission.is_of_pytorch:
    raise InputError(
      "Invalid framework='jax'. Must be 'pytorch' for "
      f'{settings.submission_path}.'
    )
  check_experiment(settings)
  seed = _rng_seed(settings, drawn_seed)
  batch_size, eval_batch_size = _batch_sizes(
    settings, context, workload, submission
  )
  factor = 1.5 if settings.tuning_ruleset == 'self' else 1.0
  budget = settings.max_global_steps or round(factor * workload.step_hint)
  eval_every = settings.eval_every_steps or getattr(
    workload, 'eval_every_steps', None
  )
  trials = []
  for number, hyperparameters in _points(settings, seed):
    directory = settings.trial_dir(number)
    if settings.resume_last_run:
      hyperparameters = _saved_hyperparameters(directory, hyperparameters)
    trials.append(
      Trial(
        workload=workload,
        submission=submission,
        settings=settings,
        context=context,
        hyperparameters=hyperparameters,
        rng_seed=seed,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        budget=budget,
        eval_every=eval_every,
        directory=directory,
      )
    )
  return trials


def check(trials: list[Trial]) -> list[Trial]:
  """Initialise every trial once, without keeping or writing anything.

  Returns:
    The trials, with the checkpoints from which they are to be resumed.

  Raises:
    InputError: hyperparameters or a checkpoint cannot be used.
  """
  if trials[0].settings.resume_last_run:
    trials = _with_checkpoints(trials)
  for trial in trials:
    _check_trial(trial)
  return trials


def with_timestamp(settings: Settings, stamp: str) -> Settings:
  """The settings with a date and time appended to the experiment's name."""
  return dataclasses.replace(
    settings, experiment_name=f'{settings.experiment_name}-{stamp}'
  )


def after_restart(settings: Settings, context: Context) -> Settings:
  """The settings of a process that torchrun has perhaps started again.

  It resumes where its predecessor has left a checkpoint, and replaces what one
  without a checkpoint has left. Other experiments are left alone.
  """
  if os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0':
    return settings
  lock, own, has_checkpoint = ExperimentLock(settings.log_dir), False, False
  if context.is_main:
    own = lock.was_held_by(torchrun_job())
    has_checkpoint = bool(recorded.trials_with_checkpoints(settings.log_dir))
  own, has_checkpoint = context.broadcast((own, has_checkpoint))
  if not own:
    return settings
  return dataclasses.replace(
    settings, resume_last_run=has_checkpoint, overwrite=not has_checkpoint
  )
