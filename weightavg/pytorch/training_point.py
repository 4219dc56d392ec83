"""Guards of the point at which gradients are taken, for primal averaging.

Between two steps the parameters hold y, which an optimizer must not step: it
steps z. So its step is refused, before it writes, unless z is in place.
"""

import warnings
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from weightavg.interpolation_checks import momentum_warning


class Placement(Protocol):
  """Keeps y and z of some parameters."""

  @property
  def in_step(self) -> bool:
    """True while the parameters hold z."""

  def trains(self, parameter: Any) -> bool:
    """True for one of the parameters, also one that has replaced another."""

  def stepped_by(self, optimizer: torch.optim.Optimizer) -> None:
    """Note which optimizer begins to step z."""


# Modules of wrappers that only pass steps on.
_PASSING = (
  'accelerate.',
  'lightning.',
  'lightning_fabric.',
  'pytorch_lightning.',
)
# Several of the same parameters while one takes the place of another.
_PLACEMENTS: weakref.WeakSet[Placement] = weakref.WeakSet()
# One for all placements, none where there is none.
_HOOKS: list[Any] = []


def guard(placement: Placement) -> None:
  """Refuse steps of the parameters outside of `placement.in_step`.

  The guard ends with the placement.
  """
  if not _HOOKS:
    _HOOKS.append(register_optimizer_step_pre_hook(_begin_step))
  _PLACEMENTS.add(placement)
  weakref.finalize(placement, _release)


def _release() -> None:
  """Leave the steps of optimizers alone once all placements are gone."""
  # Not by its length, which may still count the one that goes.
  if not any(True for _ in _PLACEMENTS):
    while _HOOKS:
      _HOOKS.pop().remove()


def check_not_stepped(parameters: Sequence[Tensor], action: str) -> None:
  """Raise RuntimeError if the parameters hold z at the moment."""
  stepped = [placement for placement in _PLACEMENTS if placement.in_step]
  if any(placement.trains(p) for placement in stepped for p in parameters):
    raise RuntimeError(
      'The model holds z, which another averager has handed to the '
      f'optimizer. Call its update() before {action}.'
    )


def _begin_step(
  optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]
) -> None:
  """Refuse a step from y; tell the placements which optimizer steps z."""
  found: set[Placement] = set()
  for p in (p for group in optimizer.param_groups for p in group['params']):
    placements = [one for one in _PLACEMENTS if one.trains(p)]
    if placements and not any(one.in_step for one in placements):
      raise RuntimeError(
        'Call before_step(optimizer) before the step of the optimizer: it '
        'steps z, and the model holds y.'
      )
    found.update(placements)
    if len(found) == len(_PLACEMENTS):
      break
  if not found:
    return
  if any(v is not None for v in (*args[1:], *kwargs.values())):
    raise RuntimeError(
      'Invalid closure. It would take gradients at z: compute them, call '
      'before_step(optimizer), then step() without a closure.'
    )
  with torch.no_grad():
    for placement in found:
      placement.stepped_by(optimizer)


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
  """Return the optimizer inside the wrappers of Accelerate and Lightning.

  They pass a step on as it is. Other wrappers, such as Lookahead, change the
  weights after it.
  """
  inner = getattr(optimizer, 'optimizer', None)
  modules = [kind.__module__ for kind in type(optimizer).__mro__]
  is_passing = any(module.startswith(_PASSING) for module in modules)
  if is_passing and isinstance(inner, torch.optim.Optimizer):
    return unwrapped(inner)
  return optimizer


def warn_of_momentum(
  interpolation: float, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
  """Warn where the gradient's memory is there twice."""
  for optimizer in optimizers:
    for group in optimizer.param_groups:
      beta1 = group['betas'][0] if 'betas' in group else 0.0
      momentum = max(float(beta1), float(group.get('momentum', 0.0)))
      warning = momentum_warning(
        interpolation, type(optimizer).__name__, momentum
      )
      if warning is not None:
        warnings.warn(warning, stacklevel=3)
        return
