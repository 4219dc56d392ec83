"""SHA-256 checksums of checkpoints, in hidden files beside them.

`.checkpoint_20.sha256` has the format of sha256sum. While a checkpoint replaces
one of the same name the file lists the checksums of both, so that a process
that is killed at any moment leaves a checkpoint with its checksum.
"""

import functools
import hashlib
import os
import re
from typing import IO, Any

from lab.core import atomic_files

_LINE = re.compile(r'([0-9a-f]{64})  \S.*')
# More than a replacement ever writes.
_MOST_BYTES = 4096


class HashedFile:
  """A binary file that hashes what is written to it.

  Args:
    file: Open for writing.
  """

  def __init__(self, file: IO[bytes]) -> None:
    self._file = file
    self._hash = hashlib.sha256()

  def write(self, data: Any) -> int:
    """Write and hash bytes."""
    self._hash.update(data)
    return self._file.write(data)

  def flush(self) -> None:
    """Flush the file."""
    self._file.flush()

  @property
  def digest(self) -> str:
    """Digest of all bytes so far, in hexadecimal."""
    return self._hash.hexdigest()


def path_of(path: str) -> str:
  """Return the path of the file that holds a file's checksum.

  >>> path_of('trial_1/checkpoint_20')
  'trial_1/.checkpoint_20.sha256'
  """
  directory, name = os.path.split(path)
  return os.path.join(directory, f'.{name}.sha256')


def known(path: str) -> list[str]:
  """Return the digests that a file may have; none where nobody recorded one."""
  try:
    with open(path_of(path), encoding='ascii', errors='replace') as file:
      lines = file.read(_MOST_BYTES).splitlines()
  except OSError:
    return []
  matches = [_LINE.fullmatch(line) for line in lines]
  return [match[1] for match in matches if match]


def record(path: str, digests: list[str]) -> None:
  """Write the digests that a file may have from now on."""
  name = os.path.basename(path)
  text = ''.join(f'{digest}  {name}\n' for digest in digests)
  atomic_files.replace(path_of(path), lambda file: file.write(text))


def of_file(path: str) -> str:
  """Return the digest of a file's content."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def matches(path: str) -> bool:
  """Tell if a file has a checksum that it was recorded with, or none.

  Raises:
    OSError: The file cannot be read.
  """
  digests = known(path)
  if not digests:
    return True
  found = os.stat(path)
  identity = (found.st_ino, found.st_size, found.st_mtime_ns)
  return _digest_of_version(path, identity) in digests


@functools.lru_cache(maxsize=4096)
def _digest_of_version(path: str, identity: tuple[int, ...]) -> str:
  """A sweep opens each of its files many times."""
  del identity
  return of_file(path)


def remove(path: str) -> None:
  """Remove a file, then its checksum."""
  os.remove(path)
  if os.path.exists(path_of(path)):
    os.remove(path_of(path))


def replace(path: str, write: Any, temporary: str) -> None:
  """Write a file with its checksum; see `atomic_files.replace`.

  Args:
    path: The file.
    write: Called with a binary file.
    temporary: Path of the temporary file.

  Raises:
    OSError: The file cannot be written; the former one is as it was.
  """
  written: list[str] = []

  def write_hashed(file: IO[bytes]) -> None:
    hashed = HashedFile(file)
    write(hashed)
    written.append(hashed.digest)

  before: list[str] = []
  if os.path.exists(path):
    before = known(path) or [of_file(path)]
  atomic_files.replace(
    path,
    write_hashed,
    temporary=temporary,
    binary=True,
    before_rename=lambda: record(path, [*written, *before]),
  )
  if before:
    record(path, written)
