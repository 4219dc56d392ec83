"""A model behind its wrappers: clean names, whichever way it is wrapped."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel

_COMPILED = '_orig_mod'


def unwrap(model: nn.Module) -> nn.Module:
  """The module inside DistributedDataParallel, DataParallel, torch.compile."""
  while True:
    if isinstance(model, DistributedDataParallel | DataParallel):
      model = model.module
    elif isinstance(model, OptimizedModule):
      model = getattr(model, _COMPILED)
    else:
      return model


def clean_name(name: str) -> str:
  """Drop what torch.compile puts into the names of compiled submodules."""
  return '.'.join(part for part in name.split('.') if part != _COMPILED)


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
  """Parameters under their clean names, each once (tied ones: first name)."""
  for name, parameter in unwrap(model).named_parameters():
    yield clean_name(name), parameter


def named_running_statistics(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
  """Running means and variances of normalisation layers, each once.

  Integer buffers (the counters of batches) are left out, and so are buffers of
  other layers, which are constants.
  """
  for name, buffer in unwrap(model).named_buffers():
    is_statistic = name.rpartition('.')[2] in ('running_mean', 'running_var')
    if is_statistic and torch.is_floating_point(buffer):
      yield clean_name(name), buffer
