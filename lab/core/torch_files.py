"""Load PyTorch files that may come from anybody.

`torch.load(weights_only=True)` runs no code. Two things remain: a compressed
archive, or a pickle that asks for a buffer of any size, takes far more memory
than the file, and torch does not compare the archive's checksums.
"""

import mmap
import zipfile
from typing import Any

import torch

# A pickle's request for a bytearray, which torch's unpickler grants at any size
# and no checkpoint needs.
_REFUSED = b'bytearray\n'


def load(path: str, **options: Any) -> Any:
  """Return the content of a file: tensors, numbers, text and containers.

  Args:
    path: A file of `torch.save`.
    **options: For `torch.load`.

  Raises:
    ValueError: The file would take far more memory than it is long.
    Exception: Whatever the zip reader and the unpickler raise.
  """
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      _check(archive)
  else:
    _check_legacy(path)
  return torch.load(path, weights_only=True, **options)


def _check(archive: zipfile.ZipFile) -> None:
  for entry in archive.infolist():
    if entry.compress_type != zipfile.ZIP_STORED:
      raise ValueError(f'{entry.filename!r} is compressed')
    if entry.filename.endswith('.pkl') and _REFUSED in archive.read(entry):
      raise ValueError('it asks for a bytearray')


def _check_legacy(path: str) -> None:
  """Check a file that is not an archive: pickles, then the tensors."""
  with open(path, 'rb') as file:
    if not file.read(1):
      raise ValueError('the file is empty')
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
      if content.find(_REFUSED) >= 0:
        raise ValueError('it asks for a bytearray')


def damage(path: str) -> str | None:
  """Return what is wrong with an archive by its own checksums, or None.

  A file of another kind has none.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      _check(archive)
      broken = archive.testzip()
  except Exception as error:
    # zipfile raises errors of many kinds for damaged files.
    return f'truncated or damaged ({type(error).__name__})'
  return None if broken is None else f'damaged: {broken!r} has another CRC-32'
