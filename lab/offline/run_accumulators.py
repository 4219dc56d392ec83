"""Post-hoc tracks along a run of `lab.run`.

A trial's folder `posthoc` holds the snapshots that `average --scheme posthoc`
reads, posthoc_<track>_step_<n>.safetensors, and beside each checkpoint of the
trial the tracks' own state, state_<n>.pt: a snapshot is rounded to the weights'
dtype and taken at other steps, so that tracks could not go on from it.
"""

import os
import re
from typing import Any

import torch
from torch import nn

from lab.core import checkpoint_files
from lab.core.errors import InputError
from lab.offline import posthoc

FOLDER = 'posthoc'
_SNAPSHOT = re.compile(r'posthoc_\d+_step_(\d+)\.safetensors')
_STATE = re.compile(r'state_(\d+)\.pt')


def folder_of(directory: str) -> str:
  """Where a trial's snapshots are."""
  return os.path.join(directory, FOLDER)


def snapshot_steps(directory: str) -> list[int]:
  """Steps of the snapshots of a trial, in order."""
  return sorted(set(_found(directory, _SNAPSHOT).values()))


def state_path(directory: str, step: int) -> str:
  """Path of the tracks' state at the checkpoint of a step."""
  return os.path.join(folder_of(directory), f'state_{step}.pt')


class RunTracks:
  """The tracks of one trial; to be kept on rank 0 only.

  Sampled are the raw weights after every step. Two averages take twice the
  memory of the weights in float32, beside the weights.

  Args:
    model: what is trained, wrapped or not.
    directory: the trial's.
    every: steps between two snapshots.
    keep: how many of the latest steps' snapshots stay; None: all.
  """

  def __init__(
    self, model: nn.Module, directory: str, every: int, keep: int | None = None
  ) -> None:
    self._tracks = posthoc.Tracks(model)
    self._directory, self._every, self._keep = directory, every, keep

  def update(self, step: int) -> None:
    """Count an optimizer step, while the model holds its raw weights.

    Args:
      step: updates made so far.

    Raises:
      InputError: a snapshot cannot be written; nothing is left of it.
    """
    self._tracks.update()
    if step % self._every:
      return
    os.makedirs(folder_of(self._directory), exist_ok=True)
    self._tracks.save(folder_of(self._directory))
    if self._keep is not None:
      # A resumed run may find snapshots of steps that it has yet to make again.
      steps = [s for s in snapshot_steps(self._directory) if s <= step]
      self._remove(_SNAPSHOT, set(steps[: -self._keep]))

  def save_state(self, step: int) -> None:
    """Write what `restore` needs; call it before the checkpoint is written.

    States whose checkpoints are gone go too.

    Raises:
      InputError: it cannot be written; nothing is left of it.
    """
    path = state_path(self._directory, step)
    temporary = os.path.join(folder_of(self._directory), '.temporary_state')
    content = {'step': step, **self._tracks.state_dict()}
    try:
      os.makedirs(folder_of(self._directory), exist_ok=True)
      with open(temporary, 'wb') as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
      if os.path.exists(temporary):
        os.remove(temporary)
      reason = getattr(error, 'strerror', None) or error
      raise InputError(f'Cannot write {path}: {reason}.') from error
    states = set(_found(self._directory, _STATE).values())
    kept = {step, *checkpoint_files.steps(self._directory)}
    self._remove(_STATE, states - kept)

  def restore(self, step: int) -> None:
    """Go on from the state beside the checkpoint of a step.

    Raises:
      InputError: there is none, or it cannot be used.
    """
    path = state_path(self._directory, step)
    if not os.path.exists(path):
      raise InputError(
        f'Cannot resume with --posthoc_every: no state of the tracks, {path}. '
        'The run must have had the flag from its start.'
      )
    try:
      content: Any = torch.load(path, map_location='cpu', weights_only=True)
      if content['step'] != step:
        raise ValueError(f'of step {content["step"]}')
      self._tracks.load_state_dict(content)
    except Exception as error:
      # Torch raises whatever its zip reader and unpickler do.
      text = ' '.join(f'{type(error).__name__}: {error}'.split())[:160]
      raise InputError(
        f'Cannot resume from {path}: truncated, or of another run ({text}).'
      ) from error

  def _remove(self, pattern: re.Pattern, steps: set[int]) -> None:
    for name, step in _found(self._directory, pattern).items():
      if step in steps:
        os.remove(os.path.join(folder_of(self._directory), name))


def _found(directory: str, pattern: re.Pattern) -> dict[str, int]:
  """Names of files in the folder that match, and their steps."""
  folder = folder_of(directory)
  if not os.path.isdir(folder):
    return {}
  matches = map(pattern.fullmatch, os.listdir(folder))
  return {match[0]: int(match[1]) for match in matches if match}
