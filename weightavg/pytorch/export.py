"""The average outside its averager: state dicts, copies, other libraries.

Nothing here touches the model that is trained.
"""

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightavg.pytorch import dtensors, models
from weightavg.pytorch.saved_state import check_tensors

# Prefix of a model's own keys in the state dicts of other libraries' averages.
PREFIXES = {
  'torch': 'module.',  # torch.optim.swa_utils.AveragedModel
  'ema_pytorch': 'ema_model.',  # ema_pytorch.EMA
  'timm': 'module.',  # timm.utils.ModelEmaV2, ModelEmaV3
}


def averaged_state(
  model: nn.Module, averaged: Mapping[int, Tensor]
) -> dict[str, Any] | None:
  """A state dict of a model with some of its tensors replaced.

  Args:
    model: without its wrappers.
    averaged: by the identity of the parameter or buffer that it replaces.

  Returns:
    `copies` under the model's own keys; None if one of the tensors to replace
    is not found there, as where a hook of the model casts them, or where the
    model's own `state_dict` takes no arguments.
  """
  try:
    inspect.signature(model.state_dict).bind(keep_vars=True)
  except TypeError:
    return None
  state = model.state_dict(keep_vars=True)
  if not averaged.keys() <= {id(value) for value in state.values()}:
    return None
  return copies(state, averaged)


def copies(
  state: Mapping[str, Any], replaced: Mapping[int, Tensor] | None = None
) -> dict[str, Any]:
  """Copy the values of a state dict.

  Args:
    state: of a model.
    replaced: what to copy instead of some tensors, by their identity.

  Returns:
    Under the same keys, tensors that share no memory with the model, the
    averager or each other, as safetensors asks for.
  """
  found: dict[str, Any] = {}
  for key, value in state.items():
    if isinstance(value, Tensor):
      source = (replaced or {}).get(id(value), value).detach()
      found[key] = torch.empty_like(
        source, dtype=value.dtype, device=value.device
      ).copy_(source)
    else:
      found[key] = copy.deepcopy(value)
  return found


def load_into(model: nn.Module, state: Mapping[str, Any]) -> None:
  """Load a state dict into another model, however it is wrapped or sharded.

  A collective if the state holds DTensors and the model has others, or none.

  Raises:
    ValueError: the model has other tensors; nothing has been written.
  """
  if not isinstance(model, nn.Module):
    raise ValueError(f'Invalid {model=!r}. Must be a torch.nn.Module.')
  target = models.unwrap(model)
  own = target.state_dict()
  names = {models.clean_name(key): key for key in own}
  found = {
    names.get(models.clean_name(key), key): value
    for key, value in state.items()
  }
  # Before anything is written: torch writes those that do fit.
  check_tensors(
    own, {key: _shape(value) for key, value in found.items()}, 'model'
  )
  for key, value in found.items():
    if isinstance(value, Tensor) and isinstance(own.get(key), Tensor):
      piece = dtensors.piece_of(value, own[key])
      found[key] = dtensors.wrap(piece, own[key])
  target.load_state_dict(found)


def _shape(value: Any) -> torch.Size | None:
  return value.shape if isinstance(value, Tensor) else None


def to_library(
  state: Mapping[str, Any], library: str, samples: int, step: int
) -> dict[str, Any]:
  """The state dict that another library's average would have.

  Args:
    state: of the averaged model.
    library: 'torch' (AveragedModel), 'ema_pytorch' (EMA, with
      include_online_model=False) or 'timm' (ModelEmaV2, ModelEmaV3).
    samples: number of samples in the average.
    step: number of updates, sampled or not, which ema-pytorch counts.

  Raises:
    ValueError: for another library.
  """
  _check_library(library)
  prefixed = {PREFIXES[library] + key: value for key, value in state.items()}
  if library == 'torch':
    return {'n_averaged': torch.tensor(samples), **prefixed}
  if library == 'ema_pytorch':
    counters = {'initted': torch.tensor(True), 'step': torch.tensor(step)}
    return {**counters, **prefixed}
  return prefixed


def from_library(
  state: Mapping[str, Any], library: str, names: Iterable[str]
) -> tuple[dict[str, Tensor], int | None]:
  """The average in another library's state dict, and its number of updates.

  Args:
    state: its state dict.
    library: as in `to_library`.
    names: what is averaged here. They tell whether a `module.` behind the
      prefix is DistributedDataParallel's or the model's own.

  Returns:
    The averaged model's own entries under clean names, and the counter, None
    where the library keeps none.

  Raises:
    ValueError: for another library, or a state dict that is not its.
  """
  _check_library(library)
  if not isinstance(state, Mapping) or not all(
    isinstance(key, str) for key in state
  ):
    raise ValueError(
      f'Invalid state: a {type(state).__name__}. Must be its state_dict().'
    )
  prefix = PREFIXES[library]
  found = {
    key.removeprefix(prefix): value
    for key, value in state.items()
    if key.startswith(prefix)
  }
  clean = models.clean_names(found, set(names))
  found = {clean[key]: value for key, value in found.items()}
  if not found:
    raise ValueError(
      f'Invalid state: no key begins with {prefix!r}, as those of {library} do.'
    )
  # The others do not count samples.
  counter = state.get('n_averaged') if library == 'torch' else None
  if isinstance(counter, Tensor) and counter.numel() != 1:
    raise ValueError(f'Invalid state: n_averaged={counter}. Must be a number.')
  return found, None if counter is None else int(counter)


def _check_library(library: str) -> None:
  if library not in PREFIXES:
    raise ValueError(
      f'Invalid {library=}. Must be one of {", ".join(PREFIXES)}.'
    )
