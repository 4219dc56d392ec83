"""What a checkpoint holds, as one number.

SHA-256 over names, dtypes, shapes and bytes of the tensors, sorted by name: the
same weights have the same digest in any container.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor

from lab.offline.readers import Checkpoint, Spec


def _begin(hashed: Any, name: str, spec: Spec) -> None:
  hashed.update(f'{name}|{spec.dtype}|{tuple(spec.shape)}|'.encode())


def _add(hashed: Any, values: Tensor) -> None:
  hashed.update(values.contiguous().view(torch.uint8).numpy())


def digest(checkpoint: Checkpoint) -> str:
  """The digest of a checkpoint."""
  hashed = hashlib.sha256()
  for name, spec in checkpoint.layout.items():
    _begin(hashed, name, spec)
    _add(hashed, checkpoint.tensor(name).reshape(-1))
  return hashed.hexdigest()


class Digests:
  """Digests of many checkpoints at once, from values as they pass by.

  Args:
    wanted: whether to compute any.
  """

  def __init__(self, wanted: bool) -> None:
    self._wanted = wanted
    self._hashes: dict[int, Any] = {}

  def add(
    self, index: int, name: str, spec: Spec, begin: int, values: Tensor
  ) -> None:
    """Take in the next flat values of a tensor of the index-th checkpoint."""
    if not self._wanted:
      return
    hashed = self._hashes.setdefault(index, hashlib.sha256())
    if begin == 0:
      _begin(hashed, name, spec)
    _add(hashed, values)

  def of(self, index: int) -> str | None:
    """The digest of the index-th checkpoint, None if none was wanted."""
    return self._hashes[index].hexdigest() if self._wanted else None
