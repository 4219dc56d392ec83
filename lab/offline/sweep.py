"""Every average at every evaluation point of a finished run.

At an evaluation after step t the average is over the light checkpoints up to
t, each `every`-th of them counted back from the last one, as `average` does
with the same arguments. Results are kept by content: a digest of the weights
that were evaluated, and of how.
"""

import contextlib
import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.core import logs
from lab.core.errors import InputError
from lab.offline import batch_norm
from lab.offline.chunks import Average, averaged_names
from lab.offline.plans import Plan, Scheme, described, taken
from lab.offline.readers import Checkpoint
from lab.offline.series import Series
from weightavg.pytorch.models import clean_name, unwrap
from weightavg.schemes import Windowed

CACHE = 'cache.jsonl'
# Of evaluations; AlgoPerf takes no tuples.
_RNG = [0, 1]


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
  """Turn what the disk has against a file into an InputError."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or error
    raise InputError(f'Cannot write {path}: {reason}.') from error


class Variant(NamedTuple):
  """One curve of a sweep.

  Args:
    scheme: the average.
    every: checkpoints between two samples.
  """

  scheme: Scheme
  every: int

  @property
  def name(self) -> str:
    """A name for files: lawa_5_every_2."""
    columns = self.columns
    knob = columns['window'] or columns['decay']
    return f'{columns["scheme"]}_{knob}_every_{self.every}'

  @property
  def columns(self) -> dict[str, Any]:
    """What sets its rows apart."""
    columns = {'scheme': None, 'window': None, 'decay': None}
    return columns | described(self.scheme) | {'every': self.every}


def evaluations(run: str) -> list[dict[str, str]]:
  """Rows of a run's eval_measurements.csv, the last one of each step.

  Raises:
    InputError: there is no such file, or no row in it.
  """
  path = os.path.join(run, logs.EVAL_MEASUREMENTS)
  try:
    with open(path, encoding='utf-8', newline='') as file:
      # A run that was killed while writing leaves a short last line.
      whole = [r for r in csv.DictReader(file) if None not in r.values()]
      rows = {int(float(r['global_step'])): r for r in whole}
  except (OSError, KeyError, ValueError) as error:
    raise InputError(f'Cannot read the evaluations {path}: {error}.') from error
  if not rows:
    raise InputError(f'No evaluation in {path}.')
  return [rows[step] for step in sorted(rows)]


class Sweep:
  """Averages of a run's checkpoints, evaluated on its workload.

  Args:
    workload: local or AlgoPerf's.
    series: the checkpoints.
    run: the trial's directory.
    cache: folder for results of earlier sweeps.
    data_dir: where the workload's data are.
    recompute: batches for recomputing BatchNorm's running statistics; 0: do
      not.
    batch_size: global, of those batches.
    imagenet_v2_data_dir: where AlgoPerf's ImageNet workloads have test data.
    statistics: whether running statistics are averaged, or the last
      checkpoint's.
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
    """Evaluations that have checkpoints before them, with the last one."""
    found = []
    for row in self.rows:
      step = int(float(row['global_step']))
      before = [i for i, s in enumerate(self._series.steps) if s <= step]
      if before:
        found.append((row, before[-1]))
    return found

  def run(
    self, variants: Sequence[Variant], done: Callable[[], None]
  ) -> Iterator[tuple[Variant, dict[str, Any]]]:
    """Rows with the run's columns, variant after variant.

    Args:
      variants: what to evaluate.
      done: called after each evaluation.
    """
    for variant in variants:
      running: dict[int, Running] = {}
      for row, position in self.points():
        inputs = taken(position, variant.every)
        scheme = variant.scheme
        if isinstance(scheme, Windowed):
          # As online: before the window is full, of those that are there.
          inputs = inputs[-scheme.size :]
          average = Running(self._series, scheme, self._statistics)
        else:
          # Points whose samples are the same ones go on from each other.
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
      with (
        writing(self._cache_path),
        open(self._cache_path, 'a', encoding='utf-8') as file,
      ):
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
  """An average in memory that can go on with further checkpoints.

  Args:
    series: the checkpoints.
    scheme: of the average; LAWA's cannot go on once it has been asked for.
    statistics: whether running statistics are averaged.
  """

  def __init__(
    self, series: Series, scheme: Scheme, statistics: bool = True
  ) -> None:
    self._series = series
    self._statistics = statistics
    self._plan = Plan((), scheme, {})
    self._sums: dict[str, Average] = {}
    self._seen = 0

  def at(self, inputs: Sequence[int]) -> dict[str, Tensor]:
    """The average of inputs, which begin with those of the last call."""
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
  """A run's row with the average's metrics in place of its own."""
  own = {k: v for k, v in row.items() if '/' not in k}
  return {k: metrics.get(k, own.get(k, '')) for k in row} | dict(metrics)


def _read_cache(path: str) -> dict[str, dict[str, Any]]:
  found = {}
  if os.path.exists(path):
    with open(path, 'r+', encoding='utf-8') as file:
      text = file.read()
      # A sweep that was killed while writing leaves half a line, which must
      # not swallow the next one.
      if text and not text.endswith('\n'):
        file.write('\n')
    for line in text.splitlines():
      with contextlib.suppress(ValueError):
        entry = json.loads(line)
        found[entry['key']] = entry['metrics']
  return found
