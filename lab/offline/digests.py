"""Hash the content of checkpoints.

A digest is the SHA-256 of names, dtypes, shapes and bytes of the tensors,
sorted by name. Equal weights have equal digests in any file format.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor

from lab.offline.readers import Spec


def _begin(hashed: Any, name: str, spec: Spec) -> None:
  hashed.update(f'{name}|{spec.dtype}|{tuple(spec.shape)}|'.encode())


def _add(hashed: Any, values: Tensor) -> None:
  hashed.update(values.contiguous().view(torch.uint8).numpy())


class Digests:
  """Compute the digests of several checkpoints from values as they are read.

  Args:
    wanted: False computes nothing.
  """

  def __init__(self, wanted: bool) -> None:
    self._wanted = wanted
    self._hashes: dict[int, Any] = {}

  def add(
    self, index: int, name: str, spec: Spec, begin: int, values: Tensor
  ) -> None:
    """Add the next flat values of a tensor of the index-th checkpoint."""
    if not self._wanted:
      return
    hashed = self._hashes.setdefault(index, hashlib.sha256())
    if begin == 0:
      _begin(hashed, name, spec)
    _add(hashed, values)

  def of(self, index: int) -> str | None:
    """Return the digest of the index-th checkpoint; None if not wanted."""
    return self._hashes[index].hexdigest() if self._wanted else None
