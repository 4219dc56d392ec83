"""Matrix products of Shampoo in TF32: simulated on a CPU, real on a GPU."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from weightavg.pytorch.shampoo import symmetric_pairs

KINDS = ('factors', 'building', 'application')
VARIANTS: dict[str, tuple[str, ...]] = {
  'float32': (),
  'factors': ('factors',),
  'building': ('building',),
  'application': ('application',),
  'all': KINDS,
  # The optimizer's own choice under `set_float32_matmul_precision('high')`.
  'shipped': ('factors', 'application'),
}

aten = torch.ops.aten
_OPERANDS = {
  aten.mm: (0, 1),
  aten.bmm: (0, 1),
  aten.addmm: (1, 2),
  aten.addmm_: (1, 2),
  aten.baddbmm: (1, 2),
  aten.baddbmm_: (1, 2),
}


def rounded(tensor: torch.Tensor) -> torch.Tensor:
  """Round float32 numbers to 10 mantissa bits, ties away from zero.

  >>> rounded(torch.tensor([1 + 2**-10, 1 + 2**-11, 1 + 2**-12])).tolist()
  [1.0009765625, 1.0009765625, 1.0]
  """
  if tensor.dtype != torch.float32:
    return tensor
  bits = tensor.contiguous().view(torch.int32)
  return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class RoundedProducts(TorchDispatchMode):
  """Round the operands of every matrix product in the block."""

  def __torch_dispatch__(
    self,
    func: Any,
    types: Any,
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
  ) -> Any:
    args = list(args)
    for index in _OPERANDS.get(func.overloadpacket, ()):
      args[index] = rounded(args[index])
    return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def tensor_cores() -> Iterator[None]:
  """Let a GPU compute float32 products in TF32."""
  torch.set_float32_matmul_precision('high')
  try:
    yield
  finally:
    torch.set_float32_matmul_precision('highest')


@contextlib.contextmanager
def tf32_products(
  kinds: Sequence[str],
  tf32: Callable[[], contextlib.AbstractContextManager] = RoundedProducts,
) -> Iterator[None]:
  """Compute Shampoo's products of the given kinds in TF32, others in float32.

  Args:
    kinds: a selection of KINDS.
    tf32: context of such a product; simulates TF32 by default.
  """
  half = symmetric_pairs.SymmetricHalf
  add_gram, multiply = half.add_gram, half.multiply

  def rounding(kind: str) -> contextlib.AbstractContextManager:
    return tf32() if kind in kinds else contextlib.nullcontext()

  def new_add_gram(
    self: Any, rows: torch.Tensor, keep: float, add: float
  ) -> None:
    # Building a root overwrites; a factor keeps most of its old value.
    with rounding('factors' if keep else 'building'):
      add_gram(self, rows, keep, add)

  def new_multiply(self: Any, right: torch.Tensor) -> torch.Tensor:
    with rounding('application'):
      return multiply(self, right)

  half.add_gram, half.multiply = new_add_gram, new_multiply  # type: ignore[method-assign]
  try:
    yield
  finally:
    half.add_gram, half.multiply = add_gram, multiply  # type: ignore[method-assign]
