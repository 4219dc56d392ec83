"""Load PyTorch files that may come from anybody.

`torch.load(weights_only=True)` runs no code. Two things remain: a compressed
archive, or a pickle that asks for a buffer of any size, takes far more memory
than the file, and torch does not compare the archive's checksums.
"""

import pickletools
import zipfile
from typing import Any

import torch

# What torch's unpickler offers and no checkpoint needs: it allocates at will.
_REFUSED = ('bytearray',)
# Tensors that share or repeat their elements may be larger than the file.
MOST_TIMES_FILE = 10


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
  return torch.load(path, weights_only=True, **options)


def _check(archive: zipfile.ZipFile) -> None:
  for entry in archive.infolist():
    if entry.compress_type != zipfile.ZIP_STORED:
      raise ValueError(f'{entry.filename!r} is compressed')
    if entry.filename.endswith('/data.pkl'):
      for code, argument, _ in pickletools.genops(archive.read(entry)):
        if code.name == 'GLOBAL' and str(argument).endswith(_REFUSED):
          raise ValueError(f'{argument!r} is refused')


def damage(path: str) -> str | None:
  """Return what is wrong with an archive by its own checksums, or None.

  A file of another kind has none.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      _check(archive)
      broken = archive.testzip()
  except Exception as error:
    # zipfile and pickletools raise errors of many kinds for damaged files.
    return f'truncated or damaged ({type(error).__name__})'
  return None if broken is None else f'damaged: {broken!r} has another CRC-32'
