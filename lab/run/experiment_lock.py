"""Keep two runs out of one experiment directory.

The lock is flock's on a file beside the directory: the kernel releases it when
the process ends, however it ends. The file holds the process and the machine.
"""

import contextlib
import os
import re
import socket
from collections.abc import Iterator

import filelock
from absl import logging

from lab.core.errors import InputError

# Options of network file systems with which a lock stays on one machine.
LOCAL_OPTIONS = frozenset(
  ('nolock', 'local_lock=all', 'local_lock=flock', 'localflock', 'nobrl')
)
_HOLDER = re.compile(r'process (\d+) on ([\w.-]{1,255})')


def path_of(directory: str) -> str:
  """Return the path of an experiment's lock.

  >>> path_of('runs/first/click_dlrm_pytorch')
  'runs/first/.click_dlrm_pytorch.lock'
  """
  parent, name = os.path.split(os.path.normpath(directory))
  return os.path.join(parent, f'.{name}.lock')


def torchrun_job() -> str:
  """Return what the processes that one torchrun starts share; '' without it."""
  run_id = os.environ.get('TORCHELASTIC_RUN_ID')
  return '' if run_id is None else f'torchrun {run_id} {os.getppid()}'


class ExperimentLock:
  """The lock of an experiment directory, held by one run at a time.

  Args:
    directory: The experiment's directory, which need not exist.
  """

  def __init__(self, directory: str) -> None:
    self._directory = directory
    self._path = path_of(directory)
    self._lock = filelock.FileLock(
      self._path, timeout=0, fallback_to_soft=False
    )

  def check(self) -> None:
    """Raise InputError if another run holds the lock; writes nothing."""
    if os.path.exists(self._path):
      # Whether it can be taken, `held` finds out.
      unknown = contextlib.suppress(OSError, NotImplementedError)
      with unknown, self._acquired():
        pass

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """Hold the lock inside the block; creates the directory above.

    Raises:
      InputError: Another run holds it, or the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
      try:
        os.makedirs(os.path.dirname(self._path) or '.', exist_ok=True)
        stack.enter_context(self._acquired())
        self._warn_of_other_machines()
        self._write(
          f'process {os.getpid()} on {socket.gethostname()}\n{torchrun_job()}\n'
        )
      except NotImplementedError as error:
        logging.warning('%s', error)
      except OSError as error:
        raise InputError(
          f'Cannot lock {self._directory}: {error.strerror}.'
        ) from error
      yield
      # After an error the content stays, for a process that is started again.
      with contextlib.suppress(OSError):
        self._write('')

  def was_held_by(self, job: str) -> bool:
    """Tell if the last run of the directory was of a job and did not finish."""
    return bool(job) and job in self._content().splitlines()[1:]

  @contextlib.contextmanager
  def _acquired(self) -> Iterator[None]:
    try:
      self._lock.acquire()
    except filelock.Timeout as error:
      holder = _HOLDER.match(self._content())
      raise InputError(
        f'The experiment directory {self._directory} is in use by '
        f'{holder[0] if holder else "another process"}. Wait for its end, or '
        'give another --experiment_name.'
      ) from error
    except OSError as error:
      if isinstance(error, PermissionError) or not os.path.exists(self._path):
        raise
      # ENOSYS, ENOLCK, ENOTSUP: the file system knows no locks.
      raise NotImplementedError(
        f'The file system of {self._directory} has no locks '
        f'({error.strerror}): nothing keeps another run out of it.'
      ) from error
    try:
      yield
    finally:
      self._lock.release()

  def _content(self) -> str:
    try:
      with open(self._path, encoding='utf-8', errors='replace') as file:
        return file.read(300)
    except OSError:
      return ''

  def _write(self, text: str) -> None:
    # Another descriptor on the same file: the lock is not affected.
    with open(self._path, 'w', encoding='utf-8') as file:
      file.write(text)

  def _warn_of_other_machines(self) -> None:
    kind, options = mount_of(self._path)
    local = sorted(LOCAL_OPTIONS & options)
    if local or kind.startswith(('fuse.', '9p')):
      logging.warning(
        '%s is on %s (%s): its locks do not reach other machines. Nothing '
        'keeps a run on another machine out of it.',
        self._directory,
        kind,
        ','.join(local) or 'no option for it',
      )
    last = _HOLDER.match(self._content())
    if last and last[2] != socket.gethostname():
      logging.warning(
        'The last run in %s, %s, has not ended properly.',
        self._directory,
        last[0],
      )


def mount_of(
  path: str, table: str = '/proc/self/mounts'
) -> tuple[str, set[str]]:
  """Return type and options of the file system that holds a path.

  Args:
    path: A path, which need not exist.
    table: The table of mounts; without one the type is ''.
  """
  real = os.path.realpath(path)
  found: tuple[int, str, set[str]] = (-1, '', set())
  try:
    with open(table, encoding='utf-8', errors='replace') as file:
      for line in file:
        _, point, kind, options, *_ = line.split(' ')
        point = point.replace('\\040', ' ')
        inside = real == point or real.startswith(point.rstrip('/') + '/')
        if inside and len(point) >= found[0]:
          found = len(point), kind, set(options.split(','))
  except (OSError, ValueError):
    pass
  return found[1], found[2]
