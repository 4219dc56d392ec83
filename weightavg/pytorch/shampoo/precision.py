"""Full float32 matrix products, whatever precision the host allows.

AlgoPerf sets `torch.set_float32_matmul_precision('high')`: a GPU then rounds
the operands of float32 products to TF32, which has 10 mantissa bits.
docs/tf32.md says which of Shampoo's products bear that, and by which figures.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

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
  try:
    legacy = torch.get_float32_matmul_precision()
  except RuntimeError:
    # torch 2.9 added settings by backend and raises where they contradict the
    # process-wide one, so each is changed through the interface the host used.
    return _set_backends()
  if legacy == 'highest':
    return lambda: None
  levels = _levels()
  saved = [level.fp32_precision for level in levels]
  torch.set_float32_matmul_precision('highest')

  def restore() -> None:
    torch.set_float32_matmul_precision(legacy)
    for level, value in zip(levels, saved, strict=True):
      if level.fp32_precision != value:
        level.fp32_precision = value

  return restore


def _levels() -> list[Any]:
  """Return what has a precision in torch >= 2.9, general ones first."""
  backends = torch.backends
  levels = (
    backends,
    backends.cudnn,
    backends.mkldnn,
    getattr(backends.cuda, 'matmul', None),
    getattr(backends.mkldnn, 'matmul', None),
  )
  return [level for level in levels if hasattr(level, 'fp32_precision')]


def _set_backends() -> Callable[[], None]:
  changed = []
  for level in _levels():
    # A level without a value of its own reads 'ieee' by now, from one above. It
    # must get none: the host may change the one above later.
    if level.fp32_precision not in ('ieee', 'none'):
      changed.append((level, level.fp32_precision))
      level.fp32_precision = 'ieee'

  def restore() -> None:
    for level, value in changed:
      level.fp32_precision = value

  return restore
