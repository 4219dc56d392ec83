"""Write files that appear complete or not at all, and survive a power cut."""

import contextlib
import os
import re
import secrets
from collections.abc import Callable
from typing import IO, Any

_TEMPORARY = re.compile(r'.+\.[0-9a-f]{16}\.temporary')


def replace(
  path: str,
  write: Callable[[IO[Any]], object],
  *,
  temporary: str | None = None,
  binary: bool = False,
  before_rename: Callable[[], object] = lambda: None,
) -> None:
  """Write a file under another name, then rename it.

  A killed process leaves the former file, and at most the temporary one, which
  `leftovers` finds. An error removes the temporary one. Of several writers of a
  file the last one wins; a reader sees the whole content of one of them.

  Args:
    path: The file.
    write: Called with the open temporary file.
    temporary: Its path, in the same directory, where one writer alone uses it;
      by default a path that no other writer has, `<path>.<random>.temporary`.
    binary: Open it for bytes instead of text in UTF-8.
    before_rename: Called when the content is on the disk.

  Raises:
    OSError: The file cannot be written; the former one is as it was.
  """
  temporary = temporary or temporary_path(path)
  text: dict[str, Any] = {'encoding': 'utf-8', 'newline': ''}
  try:
    with open(
      temporary, 'wb' if binary else 'w', **({} if binary else text)
    ) as file:
      write(file)
      file.flush()
      os.fsync(file.fileno())
    before_rename()
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(temporary)
    raise
  sync_directory(os.path.dirname(path))


def temporary_path(path: str) -> str:
  """Return a path beside a file that no other writer has."""
  # Not the process's number: threads share it, and so may two machines.
  return f'{path}.{secrets.token_hex(8)}.temporary'


def leftovers(directory: str) -> list[str]:
  """Return the files with a name of `temporary_path` in a directory.

  Those of a process that still writes are among them. There are none in a
  directory that does not exist.
  """
  if not os.path.isdir(directory):
    return []
  names = filter(_TEMPORARY.fullmatch, os.listdir(directory))
  return [os.path.join(directory, name) for name in sorted(names)]


def sync_directory(directory: str) -> None:
  """Put the names in a directory on the disk."""
  descriptor = os.open(directory or '.', os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError:
    # Some network file systems cannot synchronise a directory.
    pass
  finally:
    os.close(descriptor)
