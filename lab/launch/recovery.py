"""Checkpoints and measurements that a killed run of the benchmark left behind.

The benchmark writes a checkpoint in place, and with
--save_intermediate_checkpoints=false it deletes the old one first: a kill in
between loses the run. So the launcher lets it keep all of them and deletes the
older ones itself, once two newer ones are complete.
"""

import pathlib
import shutil
import threading
import zipfile
from types import TracebackType

from lab.core import checkpoint_files, checksums, logs
from lab.core.curves import step_of

KEPT_CHECKPOINTS = 2


def is_complete(path: pathlib.Path) -> bool:
  """Tell if a checkpoint was written to its end.

  Those of this laboratory have a checksum. The benchmark's have none: a zip
  file's index is last, and JAX's is a folder, which gets its name when it is
  whole.
  """
  if not path.is_file():
    return path.is_dir()
  if not checksums.known(str(path)):
    return zipfile.is_zipfile(path)
  try:
    return checksums.matches(str(path))
  except OSError:
    return False


def complete_steps(directory: pathlib.Path) -> list[int]:
  """Return the steps of the complete checkpoints of a trial, ascending."""
  return [
    step
    for step in checkpoint_files.steps(str(directory))
    if is_complete(_path(directory, step))
  ]


def _path(directory: pathlib.Path, step: int) -> pathlib.Path:
  return pathlib.Path(checkpoint_files.path_of(str(directory), step))


def prepare(directory: pathlib.Path) -> int | None:
  """Make a trial's directory fit to be resumed or to be started from.

  Newer checkpoints than the last complete one are renamed to `broken_...`: the
  benchmark would choose them. Rows of measurements after that checkpoint's step
  are removed: the resumed run measures again, and both would be scored. Without
  a complete checkpoint the directory is removed.

  Returns:
    The step from which the run resumes, or None.
  """
  complete = complete_steps(directory)
  if not complete:
    if directory.exists():
      shutil.rmtree(directory)
    return None
  last = complete[-1]
  for step in checkpoint_files.steps(str(directory)):
    if step > last:
      path = _path(directory, step)
      path.rename(directory / f'broken_{path.name}')
  for name in (logs.EVAL_MEASUREMENTS, logs.MEASUREMENTS):
    _drop_rows_after(last, directory / name)
  return last


def _drop_rows_after(last: int, path: pathlib.Path) -> None:
  if not path.is_file():
    return
  table = logs.Table(str(path))
  kept = [row for row in table.rows if not _is_repeated(row, last)]
  if table.is_cleaned or len(kept) != len(table.rows):
    table.rows = kept
    table.rewrite()


def _is_repeated(row: logs.Row, last: int) -> bool:
  """True for a row that a run from the step `last` on logs again.

  An evaluation logs the number of updates before it, an update that of those
  before itself. A row without a step is not used.
  """
  step = _step(row)
  if step is None:
    return True
  is_update = 'total_duration' in row and not logs.is_of_evaluation(row)
  return step > last or (step == last and is_update)


def _step(row: logs.Row) -> int | None:
  try:
    return step_of(row)
  except (KeyError, TypeError, ValueError):
    return None


class Pruner:
  """While it is entered, a thread deletes all but the newest checkpoints.

  Args:
    directory: of a trial; need not exist yet.
    kept: number of complete checkpoints that stay, at least 1.
    every: seconds between two looks.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    kept: int = KEPT_CHECKPOINTS,
    every: float = 5.0,
  ) -> None:
    self._directory = directory
    self._kept = kept
    self._every = every
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._work, daemon=True)

  def __enter__(self) -> 'Pruner':
    self._thread.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self._ended.set()
    self._thread.join()
    self.prune()

  def _work(self) -> None:
    while not self._ended.wait(self._every):
      self.prune()

  def prune(self) -> None:
    """Delete complete checkpoints that have enough newer complete ones."""
    for step in complete_steps(self._directory)[: -self._kept]:
      path = _path(self._directory, step)
      if path.is_dir():
        shutil.rmtree(path)
      else:
        path.unlink(missing_ok=True)
