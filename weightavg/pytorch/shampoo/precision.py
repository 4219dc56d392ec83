"""Full float32 matrix products, whatever precision the host allows.

AlgoPerf sets `torch.set_float32_matmul_precision('high')`: a GPU then rounds
the operands of float32 products to TF32, which has 10 mantissa bits.
docs/tf32.md says which of Shampoo's products bear that, and by which figures.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch

_lock = threading.Lock()
_depth = 0
_restore: Callable[[], None] | None = None


@contextlib.contextmanager
def full_float32_products() -> Iterator[None]:
  """Compute float32 matrix products in float32 within the block.

  torch's setting belongs to the process, not to a thread. Blocks may nest and
  overlap in several threads: the first one in changes the setting, and the last
  one out restores it, after an exception too.

  >>> torch.set_float32_matmul_precision('high')
  >>> with full_float32_products():
  ...   torch.get_float32_matmul_precision()
  'highest'
  >>> torch.get_float32_matmul_precision()
  'high'
  >>> torch.set_float32_matmul_precision('highest')
  """
  global _depth, _restore
  with _lock:
    if _depth == 0:
      _restore = _set_full_precision()
    _depth += 1
  try:
    yield
  finally:
    with _lock:
      _depth -= 1
      if _depth == 0 and _restore is not None:
        _restore()
        _restore = None


def _set_full_precision() -> Callable[[], None]:
  """Switch to full float32; return a function that restores the setting."""
  # torch 2.9 added a setting per backend and raises where it contradicts the
  # process-wide one, so each is changed through the interface the host used.
  backends = [
    backend.matmul
    for backend in (torch.backends.cuda, torch.backends.mkldnn)
    if hasattr(getattr(backend, 'matmul', None), 'fp32_precision')
  ]
  saved = [backend.fp32_precision for backend in backends]
  try:
    legacy = torch.get_float32_matmul_precision()
  except RuntimeError:
    legacy = None
  if legacy is not None:
    torch.set_float32_matmul_precision('highest')
  else:
    for backend in backends:
      backend.fp32_precision = 'ieee'

  def restore() -> None:
    if legacy is not None:
      torch.set_float32_matmul_precision(legacy)
    for backend, value in zip(backends, saved, strict=True):
      backend.fp32_precision = value

  return restore
