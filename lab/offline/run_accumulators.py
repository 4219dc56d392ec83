"""Keep post-hoc accumulators along a run of `lab.run`.

A trial's folder `posthoc` contains the snapshots that `average --scheme
posthoc` reads, posthoc_<accumulator>_step_<n>.safetensors, and for each
checkpoint of the trial the state of the accumulators, state_<n>.pt. A run
cannot resume from a snapshot, which is rounded to the weights' dtype and taken
at other steps.
"""

import os
import re
from typing import Any

import torch
from torch import nn

from lab.core import checkpoint_files, checksums, torch_files
from lab.core.errors import InputError
from lab.offline import posthoc

FOLDER = 'posthoc'
_SNAPSHOT = re.compile(r'posthoc_\d+_step_(\d+)\.safetensors')
_STATE = re.compile(r'state_(\d+)\.pt')


def folder_of(directory: str) -> str:
  """Return the folder of a trial's snapshots."""
  return os.path.join(directory, FOLDER)


def snapshot_steps(directory: str) -> list[int]:
  """Return the steps of a trial's snapshots, in ascending order."""
  return sorted(set(_found(directory, _SNAPSHOT).values()))


def state_path(directory: str, step: int) -> str:
  """Return the path of the accumulators' state at a checkpoint's step."""
  return os.path.join(folder_of(directory), f'state_{step}.pt')


def damage(directory: str, step: int) -> str | None:
  """Return why the state of a checkpoint's step cannot be used, or None."""
  path = state_path(directory, step)
  if not os.path.exists(path):
    return (
      f'{path} is missing (--posthoc_every resumes only a run that had the '
      'flag from its start)'
    )
  digests = checksums.known(path)
  if digests and checksums.of_file(path) not in digests:
    return f'{path} does not match its checksum'
  reason = None if digests else torch_files.damage(path)
  return reason and f'{path} is {reason}'


class RunAccumulators:
  """The post-hoc accumulators of one trial; rank 0 alone keeps them.

  They sample the raw weights after every step. Two averages take twice the
  memory of the weights in float32.

  Args:
    model: the trained model, wrapped or not.
    directory: directory of the trial.
    every: steps between two snapshots.
    keep: number of steps whose snapshots stay, the latest ones; None keeps all.
  """

  def __init__(
    self, model: nn.Module, directory: str, every: int, keep: int | None = None
  ) -> None:
    self._accumulators = posthoc.Accumulators(model)
    self._directory, self._every, self._keep = directory, every, keep

  def update(self, step: int) -> None:
    """Count an optimizer step; the model must hold its raw weights.

    Args:
      step: number of optimizer steps so far.

    Raises:
      InputError: a snapshot cannot be written; nothing is left of it.
    """
    self._accumulators.update()
    if step % self._every:
      return
    os.makedirs(folder_of(self._directory), exist_ok=True)
    self._accumulators.save(folder_of(self._directory))
    if self._keep is not None:
      # A resumed run may find snapshots of later steps, which it will repeat.
      steps = [s for s in snapshot_steps(self._directory) if s <= step]
      self._remove(_SNAPSHOT, set(steps[: -self._keep]))

  def save_state(self, step: int) -> None:
    """Write the state for `restore`; call it before writing the checkpoint.

    States without a checkpoint are removed.

    Raises:
      InputError: the state cannot be written; nothing is left of it.
    """
    path = state_path(self._directory, step)
    temporary = os.path.join(folder_of(self._directory), '.temporary_state')
    content = {'step': step, **self._accumulators.state_dict()}
    try:
      os.makedirs(folder_of(self._directory), exist_ok=True)
      checksums.replace(path, lambda f: torch.save(content, f), temporary)
    except (OSError, RuntimeError) as error:
      reason = getattr(error, 'strerror', None) or error
      raise InputError(f'Cannot write {path}: {reason}.') from error
    states = set(_found(self._directory, _STATE).values())
    kept = {step, *checkpoint_files.steps(self._directory)}
    self._remove(_STATE, states - kept)

  def restore(self, step: int) -> None:
    """Load the state of a checkpoint's step.

    Raises:
      InputError: the state is missing or cannot be used.
    """
    path = state_path(self._directory, step)
    if not os.path.exists(path):
      raise InputError(
        f'Cannot resume with --posthoc_every: {path} is missing. The run must '
        'have had the flag from its start.'
      )
    try:
      content: Any = torch_files.load(path, map_location='cpu')
      if content['step'] != step:
        raise ValueError(f'of step {content["step"]}')
      self._accumulators.load_state_dict(content)
    except Exception as error:
      # The zip reader and the unpickler raise different errors.
      text = ' '.join(f'{type(error).__name__}: {error}'.split())[:160]
      raise InputError(
        f'Cannot resume from {path}: truncated, or of another run ({text}).'
      ) from error

  def _remove(self, pattern: re.Pattern, steps: set[int]) -> None:
    for name, step in _found(self._directory, pattern).items():
      if step in steps:
        checksums.remove(os.path.join(folder_of(self._directory), name))


def _found(directory: str, pattern: re.Pattern) -> dict[str, int]:
  """Return name and step of the files in the folder that match."""
  folder = folder_of(directory)
  if not os.path.isdir(folder):
    return {}
  matches = map(pattern.fullmatch, os.listdir(folder))
  return {match[0]: int(match[1]) for match in matches if match}
