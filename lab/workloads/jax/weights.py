"""Weights of a torch module as flax's parameters and statistics, and back.

Submodules have the same names on both sides; `blocks.0` is `blocks_0` in flax.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

# Leaf in torch to collection and leaf in flax, by kind of layer.
_NORM = {
  'weight': ('params', 'scale'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}
_LINEAR = {'weight': ('params', 'kernel'), 'bias': ('params', 'bias')}
_EMBEDDING = {'weight': ('params', 'embedding')}
_LEAVES: list[tuple[tuple[type, ...], dict[str, tuple[str, str]]]] = [
  ((nn.Linear, nn.Conv2d), _LINEAR),
  ((nn.Embedding,), _EMBEDDING),
  ((nn.LayerNorm, nn.modules.batchnorm._BatchNorm), _NORM),
]


def _places(
  model: nn.Module,
) -> list[tuple[torch.Tensor, tuple[str, ...], bool]]:
  """Tensors of a model, their paths in flax, and True for kernels."""
  places = []
  for name, module in model.named_modules():
    for kinds, leaves in _LEAVES:
      if not isinstance(module, kinds):
        continue
      for own, (collection, leaf) in leaves.items():
        tensor = getattr(module, own, None)
        if tensor is not None:
          path = (collection, *_flax_path(name), leaf)
          places.append((tensor.data, path, leaf == 'kernel'))
  return places


def _flax_path(name: str) -> list[str]:
  """Path of a module: numbers of a list join the name before them."""
  path: list[str] = []
  for part in name.split('.'):
    if part.isdigit():
      path[-1] += f'_{part}'
    else:
      path.append(part)
  return path


def to_flax(model: nn.Module) -> dict[str, Any]:
  """Return the collections 'params' and 'batch_stats' as numpy arrays."""
  collections: dict[str, Any] = {'params': {}, 'batch_stats': {}}
  for tensor, path, is_kernel in _places(model):
    array = tensor.numpy(force=True).copy()
    if is_kernel:
      # [out, in] to [in, out]; [out, in, h, w] to [h, w, in, out].
      array = array.transpose([*range(2, array.ndim), 1, 0])
    node = collections
    for part in path[:-1]:
      node = node.setdefault(part, {})
    node[path[-1]] = array
  return collections


def load_flax(model: nn.Module, collections: dict[str, Any]) -> None:
  """Copy flax's collections into a torch module of the same architecture."""
  for tensor, path, is_kernel in _places(model):
    node: Any = collections
    for part in path:
      node = node[part]
    array = np.array(node)
    if is_kernel:
      last = array.ndim - 1
      array = array.transpose([last, last - 1, *range(last - 1)])
    tensor.copy_(torch.from_numpy(array))
