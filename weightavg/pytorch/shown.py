"""The parameters that hold an average at the moment, and guards against writes.

While an average is shown, a write to the parameters is a write to the average
(or is lost). So an optimizer's step and a `load_state_dict` are refused before
they write, and so is a second averager that would take the average for the raw
weights. Other writes are found afterwards, by the version that torch counts for
each tensor.
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from weightavg.pytorch import dtensors

# Parameters by identity, and the object that shows its average in them.
_OWNERS: dict[int, weakref.ref] = {}
# Their versions while no write is known.
_VERSIONS: dict[int, int] = {}


@dataclasses.dataclass(eq=False)
class _Guards:
  """Entries above and hooks, which one swap in has made."""

  owner: weakref.ref
  ids: list[int]
  hooks: list[Any]


# Those that stand. An owner may go without a swap out, as where a trial ends on
# an evaluation: its hooks would slow each later step of any optimizer.
_STANDING: list[_Guards] = []


class Showing:
  """The time between a swap in and a swap out, which `begin` begins.

  Args:
    owner: shows its average.
    tensors: the parameters that are swapped.
    modules: the modules that hold them.
    allow_load: let `load_state_dict` write to the average.
  """

  def __init__(
    self,
    owner: Any,
    tensors: Sequence[Tensor],
    modules: Iterable[nn.Module],
    allow_load: bool = False,
  ) -> None:
    self._tensors = list(tensors)
    self._modules = list(modules)
    self._allow_load = allow_load
    # What `end` takes back, however far `begin` came.
    self._guards = _Guards(weakref.ref(owner), [], [])

  def begin(self) -> None:
    """Put the guards up.

    Raises:
      RuntimeError: another owner shows an average in one of the tensors.
    """
    check_not_shown(self._tensors, 'swap_in()')
    _take_down_abandoned()
    guards = self._guards
    _STANDING.append(guards)
    guards.ids.extend(id(tensor) for tensor in self._tensors)
    _OWNERS.update(dict.fromkeys(guards.ids, guards.owner))
    hooks = guards.hooks
    hooks.append(register_optimizer_step_pre_hook(_refuse_step))
    for module in self._modules:
      if not self._allow_load:
        hooks.append(module.register_load_state_dict_pre_hook(_refuse_load))
      hooks.append(module.register_load_state_dict_post_hook(_note_load))

  def note_versions(self) -> None:
    """The average is in place: what is written from now on is not its."""
    _VERSIONS.update((id(t), _version(t)) for t in self._tensors)

  def written(self) -> list[int]:
    """Indices of the tensors that were written to, not through `.data`."""
    return [
      i
      for i, t in enumerate(self._tensors)
      if _version(t) != _VERSIONS.get(id(t), _version(t))
    ]

  def end(self) -> None:
    """Remove the guards."""
    _take_down(self._guards)
    _take_down_abandoned()


def _take_down_abandoned() -> None:
  for guards in list(_STANDING):
    if guards.owner() is None:
      _take_down(guards)


def _take_down(guards: _Guards) -> None:
  for hook in guards.hooks:
    hook.remove()
  for key in guards.ids:
    # Of a tensor that is gone, another one may have the identity.
    if _OWNERS.get(key) is guards.owner:
      _OWNERS.pop(key, None)
      _VERSIONS.pop(key, None)
  # Another thread may take down the same.
  with contextlib.suppress(ValueError):
    _STANDING.remove(guards)


def is_shown(tensor: Tensor) -> bool:
  """True if the tensor holds an average."""
  owner = _OWNERS.get(id(tensor))
  # An owner that is gone left its average behind for good.
  return owner is not None and owner() is not None


def check_not_shown(tensors: Sequence[Tensor], action: str) -> None:
  """Raise RuntimeError if one of the tensors holds an average."""
  if _OWNERS and any(map(is_shown, tensors)):
    raise RuntimeError(
      'Another averager shows its average in these weights. Call its '
      f'swap_out() before {action}.'
    )


def clear_autocast_cache() -> None:
  """Forget the casts that autocast made of weights that are about to change."""
  torch.clear_autocast_cache()


def _refuse_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any):
  del args, kwargs
  for group in optimizer.param_groups:
    if any(map(is_shown, group['params'])):
      raise RuntimeError(
        'The model holds the average. Call swap_out() before a step of the '
        'optimizer.'
      )


def _refuse_load(
  module: nn.Module,
  state_dict: dict[str, Any],
  prefix: str,
  local_metadata: dict[str, Any],
  *args: Any,
) -> None:
  """Refuse a load that would change a parameter; a module's copy has none.

  The hook of the outermost module comes first, before a frozen layer or a
  buffer is written. The others see keys that their own hooks rename.
  """
  del args
  assigns = local_metadata.get('assign_to_params_buffers', False)
  for name, parameter in module.named_parameters(remove_duplicate=False):
    value = state_dict.get(prefix + name)
    if value is None or not is_shown(parameter):
      continue
    if assigns or not _is_equal(value, parameter):
      raise RuntimeError(
        f'The model holds the average. Call swap_out() before {prefix + name} '
        'is loaded.'
      )


def _note_load(module: nn.Module, incompatible: Any) -> None:
  """A load that was not refused is no write to be warned of."""
  del incompatible
  for parameter in module._parameters.values():
    if parameter is not None and is_shown(parameter):
      _VERSIONS[id(parameter)] = _version(parameter)


def _version(tensor: Tensor) -> int:
  return 0 if tensor.is_inference() else tensor._version


def _is_equal(value: Any, parameter: Tensor) -> bool:
  """A restored run may load the average that it shows once more."""
  if not isinstance(value, Tensor):
    return False
  if dtensors.is_dtensor(value) != dtensors.is_dtensor(parameter):
    return False
  own, other = dtensors.local(parameter), dtensors.local(value)
  return own.shape == other.shape and torch.equal(other.to(own), own)
