"""A model without its wrappers, and its tensors under clean names."""

import dataclasses
from collections.abc import Iterable, Iterator, Set
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from weightavg.pytorch.loaded import loaded_class

_COMPILED = '_orig_mod'
# Prefix of DistributedDataParallel and DataParallel.
WRAPPED = 'module.'
# Names of a normalisation layer's running statistics.
RUNNING_STATISTICS = ('running_mean', 'running_var')
_COUNTER = 'num_batches_tracked'


def unwrap(model: nn.Module) -> nn.Module:
  """The module inside DistributedDataParallel, DataParallel, torch.compile."""
  compiled = loaded_class('torch._dynamo', 'OptimizedModule')
  while True:
    if isinstance(model, DistributedDataParallel | DataParallel):
      model = model.module
    elif compiled is not None and isinstance(model, compiled):
      model = getattr(model, _COMPILED)
    else:
      return model


def clean_name(name: str) -> str:
  """Drop what torch.compile puts into the names of compiled submodules."""
  return '.'.join(part for part in name.split('.') if part != _COMPILED)


def clean_names(
  names: Iterable[str], known: Set[str] = frozenset()
) -> dict[str, str]:
  """Drop the wrappers' prefixes of a model from the names of its tensors.

  `module.` is DistributedDataParallel's where all names have it, and the
  model's own otherwise.

  Args:
    names: of a model's tensors.
    known: own names of the model, if they are known: once all are there, a
      `module.` that is left is the model's own, too.

  Returns:
    The clean name of each name.
  """
  clean = {name: clean_name(name) for name in names}
  while (
    clean
    and not (known and known <= {*clean.values()})
    and all(n.startswith(WRAPPED) for n in clean.values())
  ):
    clean = {
      name: clean_name(n.removeprefix(WRAPPED)) for name, n in clean.items()
    }
  return clean


def is_named_tensor(value: object) -> TypeGuard[tuple[str, Tensor]]:
  """True for a name and a tensor, as `named_parameters()` yields them."""
  return (
    isinstance(value, tuple)
    and len(value) == 2
    and isinstance(value[0], str)
    and isinstance(value[1], Tensor)
  )


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
  """Parameters under their clean names, each once (tied ones: first name)."""
  for name, parameter in unwrap(model).named_parameters():
    yield clean_name(name), parameter


@dataclasses.dataclass(frozen=True)
class Statistic:
  """A running mean or variance, by its place in the model.

  Layers may replace the tensor, as AlgoPerf's speech models do in each step.
  """

  name: str
  layer: nn.Module
  attribute: str

  @property
  def tensor(self) -> Tensor:
    """The buffer the layer currently holds; layers may replace it."""
    return getattr(self.layer, self.attribute)

  @property
  def counter(self) -> tuple[str, Tensor] | None:
    """Name and buffer of the layer's number of batches, if it counts them."""
    counter = getattr(self.layer, _COUNTER, None)
    if not isinstance(counter, Tensor):
      return None
    return self.name.removesuffix(self.attribute) + _COUNTER, counter


def running_statistics(model: nn.Module) -> Iterator[Statistic]:
  """Running means and variances of normalisation layers, each once.

  Other buffers are left to the live model: counters of batches, constants, and
  states that are not statistics of the data, such as the vectors u and v of a
  spectral norm.
  """
  for prefix, layer in unwrap(model).named_modules():
    buffers = dict(layer.named_buffers(recurse=False))
    for attribute in RUNNING_STATISTICS:
      buffer = buffers.get(attribute)
      if buffer is not None and torch.is_floating_point(buffer):
        name = f'{prefix}.{attribute}' if prefix else attribute
        yield Statistic(clean_name(name), layer, attribute)
