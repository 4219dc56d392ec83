"""Find the checkpoints of a run and sort them by step."""

import dataclasses
import glob
import os
import re
from collections.abc import Sequence

import torch

from lab.core.errors import InputError
from lab.offline.readers import Checkpoint, Spec, file_of
from lab.offline.writers import is_average

_SHARD = re.compile(r'-\d+-of-\d+\.')
_PATTERN_HINT = "--step_pattern says which number is the step: 'step_([0-9]+)'"


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

  Without a pattern the step is the last number without a fraction: metrics are
  none.

  Args:
    path: path of the checkpoint.
    pattern: regular expression whose only group is the step.

  >>> step_of('run/checkpoint_300'), step_of('step-20/model.safetensors')
  (300, 20)
  >>> step_of('epoch=7-val_loss=0.92.ckpt')
  7
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
  numbers = _numbers(path)
  if numbers:
    return numbers[-1]
  raise InputError(
    f'Cannot read a step from the name {path}. Must hold a number; or give '
    "--step_pattern, such as 'step_([0-9]+)'."
  )


def _numbers(path: str) -> list[int]:
  """The integers in a checkpoint's name, or in its directory's."""
  name = os.path.basename(os.path.normpath(path))
  stem = re.sub(r'\.(safetensors|pt|pth|bin|ckpt|json|index)\b', '', name)
  for text in (stem, os.path.basename(os.path.dirname(path))):
    whole = re.sub(r'\d+\.\d+(e[-+]?\d+)?|\d+e[-+]\d+', '', text)
    if numbers := re.findall(r'\d+', whole):
      return [int(number) for number in numbers]
  return []


def _check_order(paths: Sequence[str]) -> None:
  """Raise InputError if another number in the names gives another order.

  Args:
    paths: sorted by the last number of each.
  """
  rest = [_numbers(path)[:-1] for path in paths]
  if len({len(numbers) for numbers in rest}) > 1:
    return
  for i in range(1, len(paths)):
    if rest[i] < rest[i - 1]:
      raise InputError(
        f'Cannot tell which is the older of {paths[i - 1]} and {paths[i]}: '
        f'their numbers disagree. {_PATTERN_HINT}.'
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
    InputError: no path matches, two have the same step, or the numbers in their
      names give more than one order.
  """
  by_step: dict[int, str] = {}
  for path in matching(patterns):
    step = step_of(path, step_pattern)
    if step in by_step:
      raise InputError(
        f'Two checkpoints of step {step}: {by_step[step]} and {path}. '
        f'{_PATTERN_HINT}.'
      )
    by_step[step] = path
  steps = tuple(sorted(by_step))
  if step_pattern is None:
    _check_order([by_step[step] for step in steps])
  return Series(tuple(by_step[step] for step in steps), steps, key, evaluated)


def check_readable(series: Series) -> None:
  """Raise InputError for averages among checkpoints, or a folder of them.

  Averages of this command that a pattern takes in would be averaged once more.
  Averages alone may be averaged on purpose.
  """
  if len(series.paths) == 1:
    # One of several fails only the averages that need it.
    file_of(series.paths[0])
  averages = [path for path in series.paths if is_average(path)]
  if 0 < len(averages) < len(series.paths):
    raise InputError(
      f'Cannot use {averages[0]}: it is an average that this command has '
      'written, among checkpoints. Write averages to another folder.'
    )


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
