"""Recompute the running statistics of averaged weights on training batches."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from weightavg import spec

# AlgoPerf stores a layer's momentum under the second name during evaluation and
# restores it for the next training batch.
_MOMENTA = ('momentum', 'momentum_backup')


def norms(model: nn.Module) -> list[Any]:
  """Return the layers with running statistics, AlgoPerf's own included."""
  return [
    layer
    for layer in model.modules()
    if isinstance(getattr(layer, 'running_mean', None), Tensor)
    and hasattr(layer, 'momentum')
  ]


def recompute(
  workload: Any,
  model: nn.Module,
  model_state: Any,
  queue: Iterator[Any],
  batches: int,
  rng: Any,
) -> None:
  """Set running statistics to their means over batches of equal weight.

  Args:
    workload: provides `model_fn`.
    model: its layers get new statistics and keep their momenta.
    model_state: the state that `model_fn` expects.
    queue: training batches.
    batches: number of batches to read.
    rng: passed to `model_fn`.
  """
  layers = norms(model)
  before = [
    {key: value for key, value in vars(layer).items() if key in _MOMENTA}
    for layer in layers
  ]
  for layer in layers:
    layer.running_mean.zero_()
    layer.running_var.fill_(1.0)
  with torch.no_grad():
    for count in range(1, batches + 1):
      for layer, own in zip(layers, before, strict=True):
        vars(layer).update(dict.fromkeys(own, 1 / count))
      workload.model_fn(
        model, next(queue), model_state, spec.ForwardPassMode.TRAIN, rng, True
      )
  for layer, own in zip(layers, before, strict=True):
    vars(layer).update(own)
