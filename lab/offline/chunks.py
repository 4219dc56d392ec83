"""Cut a model into chunks and sum each chunk over the inputs."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from lab.offline.plans import AveragePlan, Weighted
from lab.offline.readers import Spec
from weightavg.pytorch import multi_tensor
from weightavg.pytorch.models import RUNNING_STATISTICS
from weightavg.schemes import Windowed

# Largest number of elements in a chunk: it stays in the cache while it is added
# to all sums that use it.
CHUNK = 1 << 17


@dataclasses.dataclass(frozen=True)
class Chunk:
  """The elements begin..end of a flattened tensor.

  Args:
    name: name of the tensor.
    begin: index of the first element.
    end: index after the last element.
    averaged: True averages the elements, False copies them from the last input.
  """

  name: str
  begin: int
  end: int
  averaged: bool


def averaged_names(layout: Mapping[str, Spec], statistics: bool) -> set[str]:
  """Return the names of the floating-point tensors to average.

  Args:
    layout: names, shapes and dtypes of the model.
    statistics: True includes the running statistics of BatchNorm.
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
) -> Iterator[list[Chunk]]:
  """Cut a model into groups whose sums are at most as large as the model.

  Args:
    layout: names, shapes and dtypes of the model, in order.
    averaged: names of the averaged tensors.
    outputs: number of sums that exist at once.
    dtype: dtype of the sums.
  """
  sizes = {name: torch.Size(s.shape).numel() for name, s in layout.items()}
  model = sum(n * layout[name].dtype.itemsize for name, n in sizes.items())
  limit = max(1, model // (max(1, outputs) * dtype.itemsize))
  group: list[Chunk] = []
  filled = 0
  for name, size in sizes.items():
    for begin, end in _cuts(size, limit, filled):
      group.append(Chunk(name, begin, end, name in averaged))
      filled += end - begin
      if filled >= limit:
        yield group
        group, filled = [], 0
  if group:
    yield group


def _cuts(size: int, limit: int, filled: int) -> Iterator[tuple[int, int]]:
  """Yield the bounds of a tensor's chunks; none crosses the end of a group."""
  begin = 0
  while True:
    end = min(size, begin + min(CHUNK, limit - filled % limit))
    yield begin, end
    filled = (filled + end - begin) % limit
    begin = end
    if begin >= size:
      return


class Sum(Protocol):
  """A sum of the values of one chunk over the inputs."""

  def add(self, values: Tensor) -> None:
    """Add the next input's values."""

  def result(self) -> Tensor:
    """Return the result; call it once, at the end."""


class Average:
  """The average of a chunk, computed like the averages in training.

  A mean is the sum in the order of the inputs, divided at the end. Other
  schemes follow their recursion.

  Args:
    plan: the planned average.
    dtype: dtype of the sums.
  """

  def __init__(self, plan: AveragePlan, dtype: torch.dtype) -> None:
    self._scheme, self._dtype = plan.scheme, dtype
    self._weights = plan.weights if isinstance(plan.scheme, Weighted) else []
    self._value: Tensor | None = None
    self._count = 0

  def add(self, values: Tensor) -> None:
    """Add the next input's values."""
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
    """Return the average; call it once, at the end."""
    assert self._value is not None
    if isinstance(self._scheme, Windowed):
      self._value.div_(float(self._count))
    return self._value


class Last:
  """A copy of the last input's values."""

  def __init__(self) -> None:
    self._value: Tensor | None = None

  def add(self, values: Tensor) -> None:
    """Add the next input's values."""
    # The values may be mapped from a file that is closed next.
    self._value = values.clone()

  def result(self) -> Tensor:
    """Return the last values."""
    assert self._value is not None
    return self._value
