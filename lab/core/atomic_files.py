"""Write files that appear complete or not at all, and survive a power cut."""

import contextlib
import os
from collections.abc import Callable
from typing import IO, Any


def replace(
  path: str,
  write: Callable[[IO[Any]], object],
  *,
  temporary: str | None = None,
  binary: bool = False,
  before_rename: Callable[[], object] = lambda: None,
) -> None:
  """Write a file under another name, then rename it.

  A killed process leaves the former file, and at most the temporary one. An
  error removes the temporary one.

  Args:
    path: The file.
    write: Called with the open temporary file.
    temporary: Its path, in the same directory; `<path>.temporary` by default.
    binary: Open it for bytes instead of text in UTF-8.
    before_rename: Called when the content is on the disk.

  Raises:
    OSError: The file cannot be written; the former one is as it was.
  """
  temporary = temporary or f'{path}.temporary'
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
