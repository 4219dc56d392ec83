"""Find the checkpoints of a run and sort them by step."""

import dataclasses
import glob
import os
import re
from collections.abc import Sequence

import torch

from lab.core.errors import InputError
from lab.offline.readers import Checkpoint, Spec

_SHARD = re.compile(r'-\d+-of-\d+\.')


@dataclasses.dataclass(frozen=True)
class Series:
  """Checkpoints of one run.

  Args:
    paths: files or directories, sorted by step.
    steps: step of each path, strictly increasing.
    key: dotted path of the state dict in PyTorch files.
    evaluated: True reads the averaged weights of files that contain both.
  """

  paths: tuple[str, ...]
  steps: tuple[int, ...]
  key: str | None = None
  evaluated: bool = False

  def open(self, index: int) -> Checkpoint:
    """Open the index-th checkpoint."""
    return Checkpoint(self.paths[index], self.key, self.evaluated)

  def position(self, step: int) -> int:
    """Return the index of the checkpoint of a step."""
    if step not in self.steps:
      nearest = sorted(self.steps, key=lambda s: abs(s - step))[:2]
      raise InputError(
        f'Invalid at={step}. No checkpoint of that step; the nearest are '
        f'{" and ".join(map(str, sorted(nearest)))}.'
      )
    return self.steps.index(step)

  @property
  def spacing(self) -> int:
    """Steps between two checkpoints.

    Raises:
      InputError: they are not evenly spaced, or there is only one.
    """
    gaps = {b - a for a, b in zip(self.steps, self.steps[1:], strict=False)}
    if len(gaps) != 1:
      raise InputError(
        'A horizon needs checkpoints at even distances; found the distances '
        f'{sorted(gaps)[:4]}. Give a window or a decay.'
      )
    return gaps.pop()


def step_of(path: str, pattern: str | None = None) -> int:
  """Return the step in a checkpoint's name, or in its directory's.

  Without a pattern the step is the last number.

  Args:
    path: path of the checkpoint.
    pattern: regular expression whose only group is the step.

  >>> step_of('run/checkpoint_300'), step_of('step-20/model.safetensors')
  (300, 20)
  """
  name = os.path.basename(os.path.normpath(path))
  if pattern is not None:
    try:
      match = re.search(pattern, path)
    except re.error as error:
      raise InputError(f'Invalid step_pattern={pattern!r}: {error}.') from error
    if match and match.groups() and str(match[1]).isdigit():
      return int(match[1])
    raise InputError(
      f'Cannot read a step from {path} by the pattern {pattern!r}.'
    )
  if _SHARD.search(name):
    raise InputError(
      f'Cannot use {path}: it is a shard. Name its index or its directory.'
    )
  stem = re.sub(r'\.(safetensors|pt|pth|bin|ckpt|json|index)\b', '', name)
  for text in (stem, os.path.basename(os.path.dirname(path))):
    numbers = re.findall(r'\d+', text)
    if numbers:
      return int(numbers[-1])
  raise InputError(
    f'Cannot read a step from the name {path}. Must hold a number; or give '
    "--step_pattern, such as 'step_([0-9]+)'."
  )


def matching(patterns: Sequence[str]) -> list[str]:
  """Return the paths that match any pattern; InputError without a match.

  A pattern that is the name of a path stands for that path.
  """
  paths = sorted(
    {
      path
      for pattern in patterns
      for path in (
        [pattern] if os.path.lexists(pattern) else glob.glob(pattern)
      )
    }
  )
  if not paths:
    raise InputError(f'No checkpoint matches {" ".join(patterns)}.')
  return paths


def find(
  patterns: Sequence[str],
  key: str | None = None,
  evaluated: bool = False,
  step_pattern: str | None = None,
) -> Series:
  """Return the checkpoints that match any pattern, sorted by step.

  Raises:
    InputError: no path matches, or two have the same step.
  """
  by_step: dict[int, str] = {}
  for path in matching(patterns):
    step = step_of(path, step_pattern)
    if step in by_step:
      raise InputError(
        f'Two checkpoints of step {step}: {by_step[step]} and {path}.'
      )
    by_step[step] = path
  steps = tuple(sorted(by_step))
  return Series(tuple(by_step[step] for step in steps), steps, key, evaluated)


def check_alike(checkpoint: Checkpoint, reference: Checkpoint) -> None:
  """Raise InputError unless names, shapes and ties agree."""
  mine, theirs = _full_layout(checkpoint), _full_layout(reference)
  for name in sorted(mine.keys() ^ theirs.keys()):
    lacking, other = checkpoint.path, reference.path
    if name in mine:
      lacking, other = other, lacking
    raise InputError(f'{lacking} lacks the tensor {name!r} of {other}.')
  for name, spec in theirs.items():
    if mine[name].shape != spec.shape:
      raise InputError(
        f'{checkpoint.path}: {name!r} has shape {mine[name].shape}, in '
        f'{reference.path} it has {spec.shape}.'
      )
    if _kind(mine[name].dtype) != _kind(spec.dtype):
      raise InputError(
        f'{checkpoint.path}: {name!r} is {mine[name].dtype}, in '
        f'{reference.path} it is {spec.dtype}.'
      )
  if checkpoint.ties != reference.ties:
    raise InputError(
      f'{checkpoint.path} and {reference.path} tie different tensors: '
      f'{checkpoint.ties} and {reference.ties}.'
    )


def _kind(dtype: torch.dtype) -> tuple[bool, bool]:
  return dtype.is_floating_point, dtype.is_complex


def _full_layout(checkpoint: Checkpoint) -> dict[str, Spec]:
  ties = {n: checkpoint.layout[f] for n, f in checkpoint.ties.items()}
  return checkpoint.layout | ties
