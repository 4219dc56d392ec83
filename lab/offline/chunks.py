"""Parts of a model that are averaged by themselves, one after the other."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from lab.offline.plans import Plan, Weighted
from lab.offline.readers import Spec
from weightavg.pytorch import multi_tensor
from weightavg.pytorch.models import RUNNING_STATISTICS
from weightavg.schemes import Windowed

# Elements of the largest piece: it stays in the cache while all sums that use
# it take it in.
PIECE = 1 << 17


@dataclasses.dataclass(frozen=True)
class Piece:
  """Elements begin..end of a flattened tensor.

  Args:
    name: of the tensor.
    begin: first element.
    end: after the last element.
    averaged: or copied from the last input.
  """

  name: str
  begin: int
  end: int
  averaged: bool


def averaged_names(layout: Mapping[str, Spec], statistics: bool) -> set[str]:
  """Names of the floating-point tensors that are averaged.

  Args:
    layout: the model.
    statistics: whether running statistics of BatchNorm are.
  """
  return {
    name
    for name, spec in layout.items()
    if (spec.dtype.is_floating_point or spec.dtype.is_complex)
    and (statistics or name.rpartition('.')[2] not in RUNNING_STATISTICS)
  }


def groups(
  layout: Mapping[str, Spec],
  averaged: set[str],
  outputs: int,
  dtype: torch.dtype,
) -> Iterator[list[Piece]]:
  """Cut a model so that a group's sums are at most as large as the model.

  Args:
    layout: the model, in order.
    averaged: names of what is averaged.
    outputs: how many sums there are at once.
    dtype: of the sums.
  """
  sizes = {name: torch.Size(s.shape).numel() for name, s in layout.items()}
  model = sum(n * layout[name].dtype.itemsize for name, n in sizes.items())
  limit = max(1, model // (max(1, outputs) * dtype.itemsize))
  group: list[Piece] = []
  filled = 0
  for name, size in sizes.items():
    for begin, end in _cuts(size, limit, filled):
      group.append(Piece(name, begin, end, name in averaged))
      filled += end - begin
      if filled >= limit:
        yield group
        group, filled = [], 0
  if group:
    yield group


def _cuts(size: int, limit: int, filled: int) -> Iterator[tuple[int, int]]:
  """Bounds of a tensor's pieces, of which none crosses a group's end."""
  begin = 0
  while True:
    end = min(size, begin + min(PIECE, limit - filled % limit))
    yield begin, end
    filled = (filled + end - begin) % limit
    begin = end
    if begin >= size:
      return


class Sum(Protocol):
  """Something fed with the values of a piece, input by input."""

  def add(self, values: Tensor) -> None:
    """Take in the next input's values."""

  def result(self) -> Tensor:
    """What came out; to be called once, at the end."""


class Average:
  """The average of a piece; the arithmetic is that of the online averages.

  A mean is a sum in order, divided at the end; EMA and polynomial averages run
  through their recursion.

  Args:
    plan: what is averaged.
    dtype: of the sums.
  """

  def __init__(self, plan: Plan, dtype: torch.dtype) -> None:
    self._scheme, self._dtype = plan.scheme, dtype
    self._weights = plan.weights if isinstance(plan.scheme, Weighted) else []
    self._value: Tensor | None = None
    self._count = 0

  def add(self, values: Tensor) -> None:
    """Take in the next input's values."""
    self._count += 1
    if self._value is None:
      self._value = torch.empty_like(values, dtype=self._dtype).copy_(values)
      if self._weights:
        self._value.mul_(self._weights[0])
    elif isinstance(self._scheme, Windowed):
      self._value.add_(values)
    elif isinstance(self._scheme, Weighted):
      self._value.add_(values, alpha=self._weights[self._count - 1])
    else:
      weight = self._scheme.coefficient(self._count)
      multi_tensor.lerp_([self._value], [values], weight)

  def result(self) -> Tensor:
    """The average; call it once, at the end."""
    assert self._value is not None
    if isinstance(self._scheme, Windowed):
      self._value.div_(float(self._count))
    return self._value


class Last:
  """A copy of the values that came last."""

  def __init__(self) -> None:
    self._value: Tensor | None = None

  def add(self, values: Tensor) -> None:
    """Take in the next input's values."""
    # They are mapped from a file that is about to be closed.
    self._value = values.clone()

  def result(self) -> Tensor:
    """The last values."""
    assert self._value is not None
    return self._value
