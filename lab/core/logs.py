"""Write the log files of a trial with AlgoPerf's names and columns.

`<experiment_dir>/<name>/<workload>_pytorch/trial_<k>/` holds hparams.json,
measurements.csv (all metrics), eval_measurements.csv (those of evaluations),
meta_data_<n>.json and flags_<n>.json of the n-th resumption.
"""

import csv
import dataclasses
import io
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from absl import logging

from lab.core import atomic_files

Row = dict[str, Any]

MEASUREMENTS = 'measurements.csv'
EVAL_MEASUREMENTS = 'eval_measurements.csv'
HPARAMS = 'hparams.json'


def write_json(path: str, content: Any) -> None:
  """Write a JSON file; it appears complete or not at all."""
  text = json.dumps(content, indent=2) + '\n'
  atomic_files.replace(path, lambda file: file.write(text))


def write_rows(path: str, rows: Iterable[Row]) -> None:
  """Write a JSON list, one row a line; it appears complete or not at all."""
  lines = ',\n'.join(map(json.dumps, rows))
  atomic_files.replace(path, lambda file: file.write(f'[\n{lines}\n]\n'))


def read_json(path: str) -> Any:
  """Return the content of a JSON file; None if it is missing or invalid."""
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except (OSError, ValueError, RecursionError):
    return None


def read_object(path: str) -> Row:
  """Return the content of a JSON file; {} unless it is an object."""
  content = read_json(path)
  return content if isinstance(content, dict) else {}


@dataclasses.dataclass(frozen=True)
class WholeRows:
  """Hold the usable lines of a CSV file.

  Args:
    columns: Names of the columns.
    rows: The rows with a cell for each column.
    is_torn: The last line is none of them, as a killed run leaves it: it lacks
      cells, or its end.
    is_damaged: Another line is none of them.
  """

  columns: list[str]
  rows: list[Row]
  is_torn: bool
  is_damaged: bool


def read_rows(path: str) -> WholeRows:
  """Read a CSV file that a killed run or a bad disk may have left.

  Raises:
    OSError: The file cannot be read.
  """
  columns: list[str] = []
  rows: list[Row] = []
  damaged: list[int] = []
  with open(path, encoding='utf-8', errors='replace', newline='') as file:
    # The csv module stops at a NUL.
    text = file.read().replace('\0', '\ufffd')
  lines = csv.reader(io.StringIO(text, newline=''))
  number = 0
  while True:
    number += 1
    try:
      cells = next(lines)
    except StopIteration:
      break
    except csv.Error:
      damaged.append(number)
      continue
    if not columns:
      columns = cells
    elif len(cells) == len(columns):
      rows.append(dict(zip(columns, cells, strict=True)))
    else:
      damaged.append(number)
  last = [number - 1]
  if text and text[-1] not in '\r\n' and damaged[-1:] != last:
    # Its last cell may be cut: a step of 15 may be one of 1500.
    damaged.append(number - 1)
    if rows:
      rows.pop()
    else:
      columns = []
  return WholeRows(
    columns,
    rows,
    is_torn=damaged[-1:] == last,
    is_damaged=damaged not in ([], last),
  )


def _step(row: Row) -> int | None:
  """Return the step of a row; None if it holds no whole number."""
  try:
    return int(row['global_step'])
  except (KeyError, TypeError, ValueError):
    return None


class Table:
  """A CSV file that grows by rows; a new metric adds a column.

  The first row's columns are sorted by name and later columns follow, as in
  AlgoPerf's files.

  Args:
    path: The file. Whole rows of an existing file are kept; a file with others
      is copied to <path>.damaged.

  Attributes:
    columns: Names of the columns.
    rows: The rows.
    is_cleaned: Lines of the existing file are left out.
  """

  def __init__(self, path: str) -> None:
    self.path = path
    self.columns: list[str] = []
    self.rows: list[Row] = []
    self.is_cleaned = False
    if os.path.exists(path):
      found = read_rows(path)
      self.columns, self.rows = found.columns, found.rows
      self.is_cleaned = found.is_torn or found.is_damaged
      if found.is_damaged:
        shutil.copyfile(path, f'{path}.damaged')
        logging.warning(
          '%s: damaged rows are left out. The whole file is %s.damaged.',
          path,
          path,
        )

  def append(self, row: Row) -> None:
    """Append a row to the file."""
    new = sorted(set(row) - set(self.columns))
    self.columns += new
    self.rows.append(row)
    if new:
      self.rewrite()
      return
    with open(self.path, 'a', encoding='utf-8', newline='') as file:
      csv.DictWriter(file, self.columns, restval='').writerow(row)

  def drop_after(self, is_last: Callable[[Row], bool]) -> None:
    """Remove the rows after the last one for which `is_last` returns True."""
    keep = [i for i, row in enumerate(self.rows) if is_last(row)]
    self.rows = self.rows[: keep[-1] + 1] if keep else []
    self.rewrite()

  def sync(self) -> None:
    """Put all rows on the disk."""
    if os.path.exists(self.path):
      with open(self.path, 'rb') as file:
        os.fsync(file.fileno())

  def rewrite(self) -> None:
    """Write the whole file again."""

    def write(file: Any) -> None:
      writer = csv.DictWriter(file, self.columns, restval='')
      writer.writeheader()
      writer.writerows(self.rows)

    atomic_files.replace(self.path, write)


def _plain(value: Any) -> Any:
  """Convert a 0-d tensor or a NumPy scalar to a Python scalar."""
  return value.item() if hasattr(value, 'item') else value


def plain_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
  """Convert metrics to Python scalars, for checkpoints and CSV files."""
  return {name: _plain(value) for name, value in metrics.items()}


def is_of_evaluation(row: dict[str, Any]) -> bool:
  """True for a row of an evaluation, or of a choice that prepares it."""
  return bool(row.get('total_duration') or row.get('averaging_choice'))


class MetricsLogger:
  """Log the metrics of submissions and of the runner; on rank 0 only.

  Args:
    directory: The trial's directory.
  """

  def __init__(self, directory: str) -> None:
    self._all = Table(os.path.join(directory, MEASUREMENTS))
    self._evals = Table(os.path.join(directory, EVAL_MEASUREMENTS))

  def append_scalar_metrics(
    self,
    metrics: dict[str, Any],
    global_step: int,
    preemption_count: int | None = None,
    is_eval: bool = False,
  ) -> None:
    """Add a row of metrics; evaluations go to both files."""
    row = {**plain_metrics(metrics), 'global_step': global_step}
    if preemption_count is not None:
      row['preemption_count'] = preemption_count
    self._all.append(row)
    if is_eval:
      self._evals.append(row)

  @property
  def last(self) -> Row | None:
    """The most recent row, of the runner or of the submission."""
    return self._all.rows[-1] if self._all.rows else None

  def sync(self) -> None:
    """Put all rows on the disk."""
    self._all.sync()
    self._evals.sync()

  def rewind(self, global_step: int) -> None:
    """Remove the rows that a run from `global_step` on logs again.

    An evaluation logs the number of updates before it. An update logs the
    number of those before itself.
    """

    def is_last(row: Row) -> bool:
      step = _step(row)
      return step is not None and (
        step < global_step or (step == global_step and is_of_evaluation(row))
      )

    self._all.drop_after(is_last)
    self._evals.drop_after(is_last)


def _cpu_model() -> str | None:
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      for line in file:
        if line.startswith('model name'):
          return line.split(':', 1)[1].strip()
  except OSError:
    pass
  return platform.processor() or None


def _git(*arguments: str) -> str | None:
  try:
    return subprocess.run(
      ['git', '-C', os.path.dirname(__file__), *arguments],
      capture_output=True,
      check=True,
      text=True,
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None


def meta_data(workload: Any, rng_seed: int) -> dict[str, Any]:
  """Return the workload's constants, the machine and the software versions."""
  content: dict[str, Any] = {}
  for name in dir(workload):
    if name.startswith('_') or name in ('param_shapes', 'model_params_types'):
      continue
    try:
      value = getattr(workload, name)
    except Exception:
      # A property may raise anything; the record does without it.
      continue
    if isinstance(value, bool | int | float | str):
      content[f'workload.{name}'] = value
  content.update(
    {
      'os_platform': platform.platform(),
      'python_version': platform.python_version(),
      'python_compiler': platform.python_compiler(),
      'torch_version': torch.__version__,
      'cpu_model_name': _cpu_model(),
      'cpu_count': os.cpu_count(),
      'torch_num_threads': torch.get_num_threads(),
      'byteorder': sys.byteorder,
      'git_branch': _git('rev-parse', '--abbrev-ref', 'HEAD'),
      'git_commit_hash': _git('rev-parse', 'HEAD'),
      'rng_seed': rng_seed,
    }
  )
  if torch.cuda.is_available():
    content['gpu_model_name'] = torch.cuda.get_device_name()
    content['gpu_count'] = torch.cuda.device_count()
  return content
