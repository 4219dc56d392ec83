"""Tensors that an optimizer moves along with its parameters, in one pass.

An average that is updated in every step reads and writes as much memory as the
optimizer. Done by the optimizer itself, while a parameter is in the cache or in
registers, its update needs no pass of its own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclasses.dataclass
class Followers:
  """One tensor f for each of some parameters p.

    f <- f + before (p - f)    with p as it is before the step
    f <- f + after (p - f)     with p as it is after the step

  Args:
    tensors: f by its parameter; same shape, dtype and device. For a DTensor it
      is this rank's piece.
    before: weight.
    after: weight.
    skip: None, or 0-dimensional float32 beside the tensors; if it is 1, the
      second line is left out.
    moved: filled in by the optimizer: the parameters that it has stepped.
  """

  tensors: Mapping[Tensor, Tensor]
  before: float
  after: float
  skip: Tensor | None = None
  moved: set[Tensor] = dataclasses.field(default_factory=set)


@runtime_checkable
class Leader(Protocol):
  """An optimizer that can move followers."""

  param_groups: list

  def lead(self, followers: Followers | None) -> None:
    """Move the followers in the next step; None for none."""
