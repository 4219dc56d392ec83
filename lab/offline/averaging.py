"""Average a series of checkpoints in one pass over the files.

The model is cut into groups of chunks. For each group the checkpoints are
opened one after another, their chunks are added to the sums of all outputs that
use them, and the group is written. The sums of a group take at most the bytes
of one model, for all outputs together. Safetensors are read chunk by chunk,
other files are mapped one at a time: the process needs at most two models of
memory for any number of checkpoints and outputs, and reads no value twice.
"""

import collections
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch

from lab.core.errors import InputError
from lab.offline.chunks import (
  CHUNK,
  Average,
  Chunk,
  Last,
  Sum,
  averaged_names,
  groups,
)
from lab.offline.digests import Digests
from lab.offline.plans import AveragePlan
from lab.offline.readers import Spec
from lab.offline.series import Series, check_alike
from lab.offline.writers import Output
from weightavg import __version__
from weightavg.pytorch import multi_tensor

# Placeholder in a file's header, as long as a digest.
_UNKNOWN = '0' * 64
# Bytes of an element of the widest dtype.
_WIDEST = 8


class _Writing:
  """An average and the file that it is written to."""

  def __init__(self, plan: AveragePlan, path: str) -> None:
    self.plan, self.path = plan, path
    self.inputs = set(plan.inputs)
    # Layout of the last input, whose dtypes the file has.
    self.last: dict[str, Spec] = {}
    self.error: InputError | None = None
    self._output: Output | None = None

  def attempt(self, action: Callable[..., object], *args: Any) -> None:
    """Call `action`; an InputError fails this output."""
    try:
      action(*args)
    except InputError as error:
      self.fail(error)

  def fail(self, error: InputError) -> None:
    self.error = error
    self.discard()

  def discard(self) -> None:
    if self._output is not None:
      self._output.discard()

  def start(
    self,
    layout: Mapping[str, Spec],
    ties: Mapping[str, str],
    recipe: Mapping[str, Any],
  ) -> None:
    self._layout = layout
    self._output = Output(self.path, layout, ties, recipe)
    self._output.pause()

  def put_group(
    self, series: Series, group: Sequence[Chunk], sums: Sequence[Sum]
  ) -> None:
    assert self._output is not None
    for chunk, total in zip(group, sums, strict=True):
      self._put(series, chunk, total)
    self._output.pause()

  def _put(self, series: Series, chunk: Chunk, total: Sum) -> None:
    assert self._output is not None
    result = total.result()
    written = result.to(self._layout[chunk.name].dtype)
    # The sum of finite values may be none, so that the second look decides.
    if (
      chunk.averaged
      and not multi_tensor.all_finite([written])
      and not _is_finite(written)
    ):
      same = _constant(series, self, chunk)
      if same is not None:
        kept = same.to(written.dtype)
        if torch.equal(kept.isfinite(), same.isfinite()):
          self._output.write(kept)
          return
      if _is_finite(result):
        raise InputError(
          f'Invalid dtype {written.dtype} of {chunk.name!r}. Its average is '
          'larger than that holds: --dtype names another one.'
        )
      raise _culprit(series, self, chunk)
    self._output.write(written)

  def finish(self, recipe: Mapping[str, Any]) -> None:
    assert self._output is not None
    self._output.finish(recipe)


def write_averages(
  series: Series,
  plans: Sequence[tuple[AveragePlan, str]],
  dtype: torch.dtype | None = None,
  sum_dtype: torch.dtype = torch.float32,
  statistics: bool = True,
  hashes: bool = True,
  progress: Callable[[int], object] = lambda passes: None,
) -> list[tuple[str, InputError | None]]:
  """Write each planned average to its path.

  Floating-point tensors are averaged, summed in `sum_dtype` or in their own
  dtype if that is wider; all other tensors are copied from the last input, and
  so are infinite values that are the same in all inputs. Tied tensors stay
  tied. An input that cannot be used fails only the outputs that
  need it. A failed output leaves no file.

  Args:
    series: the checkpoints.
    plans: pairs of a planned average and the path of its file.
    dtype: dtype of averaged tensors in the output; None keeps the inputs'.
    sum_dtype: float32 or float64.
    statistics: True averages the running statistics of BatchNorm, False copies
      them from the last input.
    hashes: True adds a digest of each input to the recipe.
    progress: called after each pass over a checkpoint with the number of all.

  Returns:
    A list of (path, error); the error is None if the file was written.
  """
  jobs = [_Writing(plan, path) for plan, path in plans]
  layout, ties = _check_inputs(series, jobs)
  averaged = averaged_names(layout, statistics)
  digests = Digests(hashes)
  scratch = torch.empty(CHUNK * _WIDEST, dtype=torch.uint8)
  unknown = _UNKNOWN if hashes else None
  # Chunks are too small to be divided among threads.
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  try:
    for job in _alive(jobs):
      recipe = _recipe(job.plan, series, lambda _: unknown)
      job.attempt(
        job.start, _converted(job.last, averaged, dtype), ties, recipe
      )
    parts = list(groups(layout, averaged, len(_alive(jobs)), sum_dtype))
    passes = len(parts) * len(_inputs(jobs))
    for group in parts:
      sums = {
        job: [_sum(p, job, sum_dtype) for p in group] for job in _alive(jobs)
      }
      for index in _inputs(sums):
        _pass_over(series, index, group, sums, digests, scratch)
        progress(passes)
      for job in _alive(jobs):
        job.attempt(job.put_group, series, group, sums[job])
      del sums
    for job in _alive(jobs):
      job.attempt(job.finish, _recipe(job.plan, series, digests.of))
  finally:
    torch.set_num_threads(threads)
    for job in jobs:
      job.discard()
  return [(job.path, job.error) for job in jobs]


def _converted(
  layout: Mapping[str, Spec],
  averaged: Collection[str],
  dtype: torch.dtype | None,
) -> dict[str, Spec]:
  """Return the layout of an output, whose averages have a dtype.

  Raises:
    InputError: the dtype is real and an average complex.
  """
  for name in sorted(averaged) if dtype else ():
    if layout[name].dtype.is_complex:
      raise InputError(
        f'Invalid dtype {dtype} of {name!r}, which is complex: it would lose '
        'its imaginary part.'
      )
  return {
    name: Spec(s.shape, dtype if dtype and name in averaged else s.dtype)
    for name, s in layout.items()
  }


def _sum(chunk: Chunk, job: _Writing, dtype: torch.dtype) -> Sum:
  if not chunk.averaged:
    return Last()
  wide = torch.promote_types(job.last[chunk.name].dtype, dtype)
  return Average(job.plan, wide)


def _alive(jobs: Iterable[_Writing]) -> list[_Writing]:
  return [job for job in jobs if job.error is None]


def _inputs(jobs: Iterable[_Writing]) -> list[int]:
  return sorted(set().union(*(job.inputs for job in _alive(jobs))))


def _fail_users(
  jobs: Iterable[_Writing], index: int, error: InputError
) -> None:
  for job in _alive(jobs):
    if index in job.inputs:
      job.fail(error)


def _check_inputs(
  series: Series, jobs: Sequence[_Writing]
) -> tuple[dict[str, Spec], dict[str, str]]:
  """Open every input, and note the layout of each output's last one.

  Returns:
    The layout and ties that most inputs share.
  """
  seen: dict[tuple, list[int]] = collections.defaultdict(list)
  for index in _inputs(jobs):
    try:
      with series.open(index) as checkpoint:
        shapes = tuple((n, s.shape) for n, s in checkpoint.layout.items())
        seen[shapes, tuple(sorted(checkpoint.ties.items()))].append(index)
    except InputError as error:
      _fail_users(jobs, index, error)
  if not seen:
    return {}, {}
  usual = max(seen.values(), key=len)
  with series.open(usual[-1]) as reference:
    for index in _inputs(jobs):
      with series.open(index) as checkpoint:
        try:
          check_alike(checkpoint, reference)
        except InputError as error:
          _fail_users(jobs, index, error)
        for job in _alive(jobs):
          if index == job.plan.inputs[-1]:
            job.last = dict(checkpoint.layout)
    return dict(reference.layout), dict(reference.ties)


def _pass_over(
  series: Series,
  index: int,
  group: Sequence[Chunk],
  sums: Mapping[_Writing, Sequence[Sum]],
  digests: Digests,
  scratch: torch.Tensor,
) -> None:
  """Add a group of one checkpoint to the sums that use it."""
  users = [job for job in _alive(sums) if index in job.inputs]
  if not users:
    return
  try:
    with series.open(index) as checkpoint:
      for i, chunk in enumerate(group):
        name, begin = chunk.name, chunk.begin
        values = checkpoint.values(name, begin, chunk.end, scratch)
        digests.add(index, name, checkpoint.layout[name], begin, values)
        for job in users:
          if chunk.averaged or index == job.plan.inputs[-1]:
            sums[job][i].add(values)
        del values
  except InputError as error:
    _fail_users(sums, index, error)


def _is_finite(values: torch.Tensor) -> bool:
  return bool(values.isfinite().all())


def _constant(
  series: Series, job: _Writing, chunk: Chunk
) -> torch.Tensor | None:
  """Return the values that all inputs have, as those of a mask of -inf."""
  found: torch.Tensor | None = None
  for index in job.plan.inputs:
    scratch = torch.empty(CHUNK * _WIDEST, dtype=torch.uint8)
    with series.open(index) as checkpoint:
      values = checkpoint.values(chunk.name, chunk.begin, chunk.end, scratch)
      # They may be mapped from the file.
      values = values.clone()
    if values.isnan().any() or not (
      found is None or torch.equal(found, values)
    ):
      return None
    found = values
  return found


def _culprit(series: Series, job: _Writing, chunk: Chunk) -> InputError:
  for index in job.plan.inputs:
    with series.open(index) as checkpoint:
      if not _is_finite(checkpoint.tensor(chunk.name)):
        return InputError(
          f'{series.paths[index]}: {chunk.name!r} holds a NaN or an infinity.'
        )
  return InputError(f'The sum of {chunk.name!r} overflows in {job.path}.')


def _recipe(
  plan: AveragePlan, series: Series, digest_of: Callable[[int], str | None]
) -> dict[str, Any]:
  return {
    'version': __version__,
    **plan.recipe,
    'inputs': [
      {
        'path': series.paths[index],
        'step': series.steps[index],
        'weight': weight,
        'sha256': digest_of(index),
      }
      for index, weight in zip(plan.inputs, plan.weights, strict=True)
    ],
  }
