"""Tensors that an optimizer moves along with its parameters, in one pass.

An average that is updated in every step reads and writes as much memory as the
optimizer. Done by the optimizer itself, while a parameter is in the cache or in
registers, its update needs no pass of its own.

A step whose gradients are not finite is left out: the parameters, and all that
the optimizer keeps for them, are as they were before it. On an accelerator the
decision is a number there, for which nothing waits.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol, TypeGuard, runtime_checkable

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
    skip: None for a step that is made, True for one that is left out, the lines
      included. Or 0-dimensional float32 beside the tensors: if it is 1, the
      step and the second line are left out, and the optimizer counts the step
      until `uncount` is called.
    moved: filled in by the optimizer: the parameters that it has stepped.
  """

  tensors: Mapping[Tensor, Tensor]
  before: float
  after: float
  skip: Tensor | Literal[True] | None = None
  moved: set[Tensor] = dataclasses.field(default_factory=set)

  @property
  def flag(self) -> Tensor | None:
    """The decision that is a number on the accelerator, if it is one."""
    return self.skip if isinstance(self.skip, Tensor) else None


@runtime_checkable
class Leader(Protocol):
  """An optimizer that can move followers."""

  param_groups: list

  @property
  def followers(self) -> Followers | None:
    """Return the followers that `lead` has set for the next step."""

  @property
  def stays_finite(self) -> bool:
    """True if finite gradients make no parameter infinite, nor a NaN.

    Apart from training that has diverged.
    """

  def lead(self, followers: Followers | None) -> None:
    """Move the followers in the next step; None for none."""

  def uncount(self) -> None:
    """Take the last step with followers out of the counts: it was left out."""


def is_leader(optimizer: object) -> TypeGuard[Leader]:
  """True for an optimizer that can move followers itself.

  A wrapper that hands over the attributes of the optimizer inside is none: it
  may change the weights before or after the step.
  """
  return isinstance(optimizer, Leader) and hasattr(type(optimizer), 'lead')
