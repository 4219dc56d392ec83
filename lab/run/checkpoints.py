"""Checkpoints with the benchmark's keys, file names and order of loading."""

import contextlib
import os
from collections.abc import Callable
from typing import IO, Any

import torch
from absl import logging

from lab.core.checkpoint_files import path_of, steps
from lab.core.errors import InputError
from lab.run.run_state import RunState

# Not checkpoint_*: a reader that globs for those must not find half a file.
TEMPORARY = '.temporary_checkpoint'
KEYS = (
  'model_params',
  'optimizer_state',
  'model_state',
  'train_state',
  'eval_results',
  'global_step',
  'preemption_count',
)


def unwrapped(model: Any) -> Any:
  """The module inside DataParallel or DistributedDataParallel."""
  wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
  return model.module if isinstance(model, wrappers) else model


def _is_jax(state: RunState) -> bool:
  """Tell if a run is in JAX, whose optimizer state is a pair."""
  return isinstance(state.optimizer_state, tuple)


def _write(write: Callable[[IO[bytes]], object], path: str) -> None:
  directory = os.path.dirname(path)
  temporary = os.path.join(directory, TEMPORARY)
  with open(temporary, 'wb') as file:
    write(file)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
  # The new name is on the disk only once the directory is.
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def save(state: RunState, directory: str, keep_all: bool = True) -> str:
  """Write the checkpoint of the current step; call it on rank 0 only.

  The model's weights are stored as they are: averaged ones, if
  `prepare_for_eval` has just put them there. A value of the optimizer's state
  without `state_dict` is left out with a warning, as the benchmark does.

  Args:
    state: The run.
    directory: The trial's directory.
    keep_all: Keep earlier checkpoints; otherwise they go once this one exists.
  """
  path = path_of(directory, state.global_step)
  if _is_jax(state):
    from lab.run import jax_checkpoints

    encoded = jax_checkpoints.encode(state)
    _write(lambda file: file.write(encoded), path)
    if not keep_all:
      jax_checkpoints.remove_older(directory, state.global_step)
    return path
  optimizer_state = {}
  for key, value in state.optimizer_state.items():
    if hasattr(value, 'state_dict'):
      optimizer_state[key] = value.state_dict()
    else:
      logging.warning(
        'optimizer_state[%r] is not saved: %s has no state_dict().',
        key,
        type(value).__name__,
      )
  content = {
    'model_params': unwrapped(state.model_params).state_dict(),
    'optimizer_state': optimizer_state,
    'model_state': state.model_state,
    'train_state': dict(state.train_state),
    'eval_results': tuple(state.eval_results),
    'global_step': state.global_step,
    'preemption_count': state.preemption_count,
  }
  _write(lambda file: torch.save(content, file), path)
  if not keep_all:
    for step in steps(directory):
      if step != state.global_step:
        os.remove(path_of(directory, step))
  return path


def read(path: str, device: torch.device) -> dict[str, Any]:
  """The content of a checkpoint file.

  Raises:
    InputError: the file is missing, truncated or not a checkpoint of a run.
  """
  try:
    content = torch.load(path, map_location=device, weights_only=True)
  except Exception as error:
    # Torch raises whatever its zip reader and unpickler do.
    raise InputError(
      f'Cannot read the checkpoint {path}: it is truncated or not a file that '
      f'torch.load(weights_only=True) takes ({type(error).__name__}).'
    ) from error
  if not isinstance(content, dict) or set(content) != set(KEYS):
    raise InputError(
      f'Cannot resume from {path}: must hold the keys {", ".join(KEYS)}.'
    )
  return content


def _short(error: Exception) -> str:
  """An error in at most 200 characters; torch lists every parameter."""
  text = ' '.join(f'{type(error).__name__}: {error}'.split())
  return text if len(text) <= 200 else f'{text[:197]}...'


def restore(state: RunState, path: str, device: torch.device) -> None:
  """Load a checkpoint into a freshly initialised run, on every rank.

  As in the benchmark, a model under DistributedDataParallel is loaded through
  `.module`, and that unwrapped module is what the submission gets from then
  on. What a failed load leaves behind is unusable.

  Raises:
    InputError: the file cannot be read or belongs to another model or
      submission.
  """
  if _is_jax(state):
    from lab.run import jax_checkpoints

    jax_checkpoints.restore(state, path)
    return
  content = read(path, device)
  expected, found = set(state.optimizer_state), set(content['optimizer_state'])
  if expected != found:
    raise InputError(
      f'Cannot resume from {path}: its optimizer_state has the keys '
      f'{sorted(found)}, this submission has {sorted(expected)}.'
    )
  model = unwrapped(state.model_params)
  try:
    model.load_state_dict(content['model_params'])
    for key, value in state.optimizer_state.items():
      value.load_state_dict(content['optimizer_state'][key])
  except Exception as error:
    # A foreign file fails in as many ways as there are load_state_dicts.
    raise InputError(
      f'Cannot resume from {path}: made by another model or submission: '
      f'{_short(error)}'
    ) from error
  state.model_params = model
  state.model_state = content['model_state']
  state.train_state = content['train_state']
  state.eval_results = list(content['eval_results'])
  state.global_step = content['global_step']
  state.preemption_count = content['preemption_count'] + 1


def remove_temporary(directory: str) -> None:
  """Remove what a run that was killed while saving left behind."""
  with contextlib.suppress(FileNotFoundError):
    os.remove(os.path.join(directory, TEMPORARY))
