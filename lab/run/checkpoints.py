"""Checkpoints with the benchmark's keys, file names and order of loading."""

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from absl import logging

from lab.core import atomic_files, checkpoint_files, checksums, torch_files
from lab.core.checkpoint_files import path_of, steps
from lab.core.errors import InputError
from lab.run.run_state import RunState, new_train_state

# Not checkpoint_*: a reader that globs for those must not find half a file.
TEMPORARY = '.temporary_checkpoint'
_CHECKSUM = re.compile(r'\.checkpoint_\d+\.sha256(\.temporary)?')
# Above every count of steps and of seconds.
_MOST = 2**53
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


def _write(write: Callable[[Any], object], path: str) -> None:
  """Write a checkpoint, complete and with its checksum, or nothing.

  Raises:
    InputError: It cannot be written; earlier checkpoints are as they were.
  """
  directory = os.path.dirname(path)
  try:
    checksums.replace(path, write, os.path.join(directory, TEMPORARY))
  except (OSError, RuntimeError) as error:
    # Torch's writer turns an error of the file system into a RuntimeError.
    cause = error if isinstance(error, OSError) else error.__context__
    reason = getattr(cause, 'strerror', None) or error
    last = checkpoint_files.latest(directory)
    raise InputError(
      f'Cannot write {path}: {reason}. '
      + (f'The last checkpoint is {last}.' if last else 'There is none yet.')
    ) from error


def save(state: RunState, directory: str, keep_all: bool = True) -> str:
  """Write the checkpoint of the current step; call it on rank 0 only.

  The model's weights are stored as they are: averaged ones, if
  `prepare_for_eval` has just put them there. A value of the optimizer's state
  without `state_dict` is left out with a warning, as the benchmark does.

  Args:
    state: The run.
    directory: The trial's directory.
    keep_all: Keep earlier checkpoints; otherwise they go once this one exists.

  Raises:
    InputError: It cannot be written; earlier checkpoints are as they were.
  """
  path = path_of(directory, state.global_step)
  if _is_jax(state):
    from lab.run import jax_checkpoints

    encoded = jax_checkpoints.encode(state)
    _write(lambda file: file.write(encoded), path)
  else:
    content = _content(state)
    _write(lambda file: torch.save(content, file), path)
  if not keep_all:
    for step in steps(directory):
      if step != state.global_step:
        checksums.remove(path_of(directory, step))
  return path


def _content(state: RunState) -> dict[str, Any]:
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
  return {
    'model_params': unwrapped(state.model_params).state_dict(),
    'optimizer_state': optimizer_state,
    'model_state': state.model_state,
    'train_state': dict(state.train_state),
    'eval_results': tuple(state.eval_results),
    'global_step': state.global_step,
    'preemption_count': state.preemption_count,
  }


def damage(path: str, is_jax: bool = False) -> str | None:
  """Return why a checkpoint cannot be trusted, or None.

  Its SHA-256 decides. Without one a PyTorch file has the CRC-32s of its
  archive, and a file of a run in JAX is read.

  Args:
    path: The checkpoint.
    is_jax: Whether it is one of a run in JAX.
  """
  digests = checksums.known(path)
  try:
    if digests:
      found = checksums.of_file(path)
      return None if found in digests else 'does not match its checksum'
    if os.path.isfile(path) and is_jax:
      from lab.run import jax_checkpoints

      return jax_checkpoints.damage(path)
    if os.path.isfile(path):
      return torch_files.damage(path)
  except OSError as error:
    return f'cannot be read: {error.strerror}'
  return 'is not a file'


def newest(
  directory: str, is_usable: Callable[[int], str | None]
) -> tuple[str | None, list[str]]:
  """Find the newest checkpoint that nothing is wrong with.

  Args:
    directory: The trial's.
    is_usable: Returns what is wrong with the checkpoint of a step, or None.

  Returns:
    Its path, or None, and a line for each newer one.
  """
  skipped: list[str] = []
  for step in reversed(steps(directory)):
    path, reason = path_of(directory, step), is_usable(step)
    if reason is None:
      return path, skipped
    skipped.append(f'{path}: {reason}')
  return None, skipped


def set_aside(directory: str, after: int) -> None:
  """Rename the checkpoints that were skipped: `broken_checkpoint_<step>`.

  Args:
    directory: The trial's.
    after: Step of the checkpoint that is used instead.
  """
  for step in steps(directory):
    path = path_of(directory, step)
    if step > after:
      aside = os.path.join(directory, f'broken_{os.path.basename(path)}')
      number = 0
      while os.path.lexists(aside if not number else f'{aside}.{number}'):
        number += 1
      os.rename(path, f'{aside}.{number}' if number else aside)


def read(path: str, device: torch.device) -> dict[str, Any]:
  """The content of a checkpoint file.

  Raises:
    InputError: the file is missing, truncated or not a checkpoint of a run.
  """
  try:
    content = torch_files.load(path, map_location=device)
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
  if not isinstance(content['optimizer_state'], dict):
    raise InputError(
      f'Cannot resume from {path}: optimizer_state must be a dictionary.'
    )
  check_plain(content, path)
  return content


def check_plain(content: Mapping[str, Any], path: str) -> None:
  """Check the part of a checkpoint that is not tensors.

  Raises:
    InputError: a value is of another type than a run writes.
  """
  for key in ('global_step', 'preemption_count'):
    if type(content[key]) is not int or not 0 <= content[key] < _MOST:
      raise InputError(f'Cannot resume from {path}: invalid {key}.')
  expected = new_train_state()
  found = content['train_state']
  if (
    not isinstance(found, dict)
    or not set(expected) <= set(found)
    or any(
      not isinstance(found[key], int | float) or not abs(found[key]) < _MOST
      for key in expected
      if found[key] is not expected[key]
    )
    or type(found['batches_drawn']) is not int
    or found['batches_drawn'] < 0
  ):
    raise InputError(f'Cannot resume from {path}: invalid train_state.')
  results = content['eval_results']
  if not isinstance(results, list | tuple) or any(
    not isinstance(pair, list | tuple)
    or len(pair) != 2
    or type(pair[0]) is not int
    or not isinstance(pair[1], dict)
    for pair in results
  ):
    raise InputError(f'Cannot resume from {path}: invalid eval_results.')


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
  """Remove what a run that was killed while writing left behind.

  Call it where no other process writes in the trial's directory.
  """
  found = [os.path.join(directory, TEMPORARY), *_orphans(directory)]
  # Of its logs, and of the checksums in the folders of lab.offline.
  for folder in (directory, *_folders(directory)):
    found += atomic_files.leftovers(folder)
  for path in found:
    with contextlib.suppress(FileNotFoundError):
      os.remove(path)


def _folders(directory: str) -> list[str]:
  with os.scandir(directory) as entries:
    return [entry.path for entry in entries if entry.is_dir()]


def _orphans(directory: str) -> list[str]:
  """Checksums without a checkpoint, and unfinished ones."""
  names = [name for name in os.listdir(directory) if _CHECKSUM.fullmatch(name)]
  return [
    os.path.join(directory, name)
    for name in names
    if name.endswith('.temporary')
    or not os.path.exists(os.path.join(directory, name[1 : -len('.sha256')]))
  ]
