"""Running statistics of averaged weights, from training batches."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from weightavg import spec

# While it evaluates, AlgoPerf keeps a layer's momentum under the second name,
# and puts it back for the next training batch.
_MOMENTA = ('momentum', 'momentum_backup')


def norms(model: nn.Module) -> list[Any]:
  """Layers with running statistics; AlgoPerf's speech models have their own."""
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
    workload: whose `model_fn` is called.
    model: its layers' momenta are what they were, afterwards.
    model_state: of the workload.
    queue: training batches.
    batches: how many to take.
    rng: handed on.
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
