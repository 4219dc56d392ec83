"""Evaluate averages of a finished run at each of its evaluations.

At an evaluation after step t the average is over the light checkpoints up to t,
each `every`-th of them counted back from the last one, as `average` computes it
with the same arguments. Results are cached by content: a digest of the
evaluated weights and of the kind of evaluation.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.core import logs
from lab.core.curves import step_of
from lab.core.errors import InputError
from lab.offline import batch_norm
from lab.offline.chunks import Average, averaged_names
from lab.offline.plans import AveragePlan, all_lengths, described, taken
from lab.offline.readers import Checkpoint
from lab.offline.series import Series
from weightavg.pytorch.models import clean_name, unwrap
from weightavg.schemes import Recursive, Windowed

CACHE = 'cache.jsonl'
# Seed of evaluations; AlgoPerf takes no tuples.
_RNG = [0, 1]


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
  """Turn an error of the file system into an InputError."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or error
    raise InputError(f'Cannot write {path}: {reason}.') from error


class Variant(NamedTuple):
  """One curve of a sweep.

  Args:
    scheme: the average, with its length in samples.
    field: the field that was given, and its value: ('horizon', 0.01).
    every: checkpoints between two samples.
    settings: names and values of what else changes the curve, where it is not
      the default.
  """

  scheme: Recursive | Windowed
  field: tuple[str, float]
  every: int
  settings: tuple[tuple[str, Any], ...] = ()

  @property
  def name(self) -> str:
    """A name for files: lawa_window_5_every_2."""
    parts = [self.field, ('every', self.every), *self.settings]
    words = [f'{name}_{value}' for name, value in parts]
    return '_'.join([self.scheme.name, *words])

  @property
  def columns(self) -> dict[str, Any]:
    """Columns that identify the variant; a horizon also has its decay."""
    return (
      {'scheme': None, **dict.fromkeys(all_lengths())}
      | described(self.scheme)
      | dict([self.field])
      | {'every': self.every, **dict(self.settings)}
    )


def evaluations(run: str) -> list[dict[str, str]]:
  """Return the rows of a run's eval_measurements.csv, the last of each step.

  Raises:
    InputError: the file is missing or has no rows.
  """
  path = os.path.join(run, logs.EVAL_MEASUREMENTS)
  try:
    rows = {step_of(row): row for row in logs.read_rows(path).rows}
  except (OSError, KeyError, ValueError) as error:
    raise InputError(f'Cannot read the evaluations {path}: {error}.') from error
  if not rows:
    raise InputError(f'No evaluation in {path}.')
  return [rows[step] for step in sorted(rows)]


class Sweep:
  """Evaluate averages of a run's checkpoints on its workload.

  Args:
    workload: a local workload, or one of AlgoPerf.
    series: the checkpoints.
    run: directory of the trial.
    cache: folder for the results of earlier sweeps.
    data_dir: folder of the workload's data.
    recompute: number of training batches on which BatchNorm's running
      statistics are recomputed; 0 does not recompute them.
    batch_size: global size of these batches.
    imagenet_v2_data_dir: folder of the test data of ImageNet workloads.
    statistics: True averages running statistics, False copies them from the
      last checkpoint.
  """

  def __init__(
    self,
    workload: Any,
    series: Series,
    run: str,
    cache: str,
    data_dir: str = '',
    recompute: int = 0,
    batch_size: int = 0,
    imagenet_v2_data_dir: str | None = None,
    statistics: bool = True,
  ) -> None:
    self._workload, self._series = workload, series
    self._statistics = statistics
    self._data_dir, self._recompute = data_dir, recompute
    self._batch_size = batch_size
    self._imagenet_v2_data_dir = imagenet_v2_data_dir
    self.rows = evaluations(run)
    self._cache_path = os.path.join(cache, CACHE)
    self._cache = _read_cache(self._cache_path)
    self._model, self._model_state = workload.init_model_fn(_RNG)
    if recompute and not batch_norm.norms(self._model):
      raise InputError(
        f'Invalid recompute_batch_norm. {workload.name} has no such layers.'
      )
    self.evaluated = 0

  def points(self) -> list[tuple[dict[str, str], int]]:
    """Return the evaluations after the first checkpoint, with the last one."""
    found = []
    for row in self.rows:
      step = step_of(row)
      before = [i for i, s in enumerate(self._series.steps) if s <= step]
      if before:
        found.append((row, before[-1]))
    return found

  def run(
    self, variants: Sequence[Variant], done: Callable[[], None]
  ) -> Iterator[tuple[Variant, dict[str, Any]]]:
    """Yield rows with the run's columns, variant after variant.

    Args:
      variants: the averages to evaluate.
      done: called after each evaluation.
    """
    for variant in variants:
      running: dict[int, Running] = {}
      for row, position in self.points():
        inputs = taken(position, variant.every)
        scheme = variant.scheme
        if isinstance(scheme, Windowed):
          # As in training: a window that is not full holds fewer samples.
          inputs = inputs[-scheme.size :]
          average = Running(self._series, scheme, self._statistics)
        else:
          # Evaluations that share samples continue the same average.
          phase = position % variant.every
          average = running.setdefault(
            phase, Running(self._series, scheme, self._statistics)
          )
        metrics = self._metrics(average.at(inputs))
        done()
        yield variant, _merged(row, metrics)

  def _metrics(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    key = self._key(weights)
    if key not in self._cache:
      self._load(weights)
      if self._recompute:
        self._recompute_statistics()
      metrics = logs.plain_metrics(
        self._workload.eval_model(
          self._workload.eval_batch_size,
          self._model,
          self._model_state,
          _RNG,
          self._data_dir,
          self._imagenet_v2_data_dir,
          0,
        )
      )
      self._cache[key] = metrics
      self.evaluated += 1
      line = json.dumps({'key': key, 'metrics': metrics}) + '\n'
      with writing(self._cache_path):
        os.makedirs(os.path.dirname(self._cache_path) or '.', exist_ok=True)
        with open(self._cache_path, 'a', encoding='utf-8') as file:
          file.write(line)
    return self._cache[key]

  def _key(self, weights: Mapping[str, Tensor]) -> str:
    workload = self._workload
    fingerprint = getattr(workload, 'data_fingerprint', lambda: '')()
    how = [type(workload).__name__, fingerprint, self._recompute]
    # AlgoPerf's workloads have no fingerprint of their data.
    how += [self._batch_size, self._data_dir, self._imagenet_v2_data_dir]
    hashed = hashlib.sha256(json.dumps(how).encode())
    for name in sorted(weights):
      hashed.update(name.encode())
      values = weights[name].contiguous().reshape(-1)
      hashed.update(values.view(torch.uint8).numpy().data)
    return hashed.hexdigest()

  def _load(self, weights: Mapping[str, Tensor]) -> None:
    model = unwrap(self._model)
    names = {clean_name(name): name for name in model.state_dict()}
    try:
      model.load_state_dict({names.get(n, n): t for n, t in weights.items()})
    except RuntimeError as error:
      raise InputError(
        f'The checkpoints {self._series.paths[0]} ... are of another model '
        f'than {self._workload.name}: {str(error)[:160]}.'
      ) from error

  def _recompute_statistics(self) -> None:
    queue = self._workload._build_input_queue(
      _RNG, 'train', self._data_dir, self._batch_size
    )
    batch_norm.recompute(
      self._workload,
      self._model,
      self._model_state,
      queue,
      self._recompute,
      _RNG,
    )


class Running:
  """An average in memory that later checkpoints can extend.

  Args:
    series: the checkpoints.
    scheme: the average. A windowed one cannot be extended after `at`.
    statistics: True averages running statistics.
  """

  def __init__(
    self,
    series: Series,
    scheme: Recursive | Windowed,
    statistics: bool = True,
  ) -> None:
    self._series = series
    self._statistics = statistics
    self._plan = AveragePlan((), scheme, {})
    self._sums: dict[str, Average] = {}
    self._seen = 0

  def at(self, inputs: Sequence[int]) -> dict[str, Tensor]:
    """Return the average of inputs, which extend those of the last call."""
    for index in inputs[self._seen :]:
      with self._series.open(index) as checkpoint:
        self._add(checkpoint)
    self._seen = len(inputs)
    with self._series.open(inputs[-1]) as last:
      result = {n: last.tensor(n).clone() for n in last.layout}
      for name, total in self._sums.items():
        result[name].copy_(total.result())
      return result | {n: result[first] for n, first in last.ties.items()}

  def _add(self, checkpoint: Checkpoint) -> None:
    layout = checkpoint.layout
    for name in averaged_names(layout, self._statistics):
      if name not in self._sums:
        dtype = torch.promote_types(layout[name].dtype, torch.float32)
        self._sums[name] = Average(self._plan, dtype)
      self._sums[name].add(checkpoint.tensor(name))


def _merged(row: Mapping[str, str], metrics: Mapping[str, Any]) -> dict:
  """Replace the metrics in a run's row by those of the average."""
  own = {k: v for k, v in row.items() if '/' not in k}
  return {k: metrics.get(k, own.get(k, '')) for k in row} | dict(metrics)


def _read_cache(path: str) -> dict[str, dict[str, Any]]:
  found = {}
  if os.path.exists(path):
    with open(path, 'r+', encoding='utf-8', errors='replace') as file:
      text = file.read()
      # An interrupted sweep leaves half a line: end it.
      if text and not text.endswith('\n'):
        file.write('\n')
    for line in text.splitlines():
      # Half a line, or one that something else has written.
      with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
        entry = json.loads(line)
        found[entry['key']] = dict(entry['metrics'])
  return found
