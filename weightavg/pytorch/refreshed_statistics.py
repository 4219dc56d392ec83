"""Running statistics of weights that no training step runs forward.

Gradients are taken at y, and so BatchNorm's running statistics are those of y.
An evaluation sees x. A forward pass at x, once in so many steps, moves
statistics of its own.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from weightavg.pytorch.averager_parts import outside_autograd
from weightavg.pytorch.swap import Swap
from weightavg.pytorch.weights import Weights


@contextlib.contextmanager
def forward_passes(
  weights: Weights,
  swap: Swap,
  average: list[Tensor],
  collective: bool | dist.ProcessGroup,
  keep: Callable[[list[Tensor]], None],
) -> Iterator[None]:
  """Show an average to forward passes that move its running statistics.

  Afterwards the model is as it was, with all its buffers, and so is the state
  of the random numbers.

  Args:
    weights: of the model.
    swap: shows the average in it.
    average: parallel to `weights.tensors`, statistics included.
    collective: keep the first rank's statistics.
    keep: gets the statistics that the passes have left behind.
  """
  assert weights.model is not None
  # Counters of batches, vectors of spectral norms, and whatever else a forward
  # pass writes; the statistics are put back by the swap.
  swapped = {id(s.tensor) for s in weights.statistics}
  others = [
    (module, name, buffer)
    for module in weights.model.modules()
    for name, buffer in module._buffers.items()
    if buffer is not None and id(buffer) not in swapped
  ]
  devices = sorted(
    {p.device.index or 0 for p in weights.parameters if p.is_cuda}
  )

  @outside_autograd
  def show() -> list[Tensor]:
    swap.show(weights.data(), average)
    return [buffer.clone() for _, _, buffer in others]

  @outside_autograd
  def put_back(values: list[Tensor]) -> None:
    swap.undo()
    for (module, name, buffer), value in zip(others, values, strict=True):
      buffer.copy_(value)
      if module._buffers.get(name) is not buffer:
        # Some layers do not write to it, but replace it.
        setattr(module, name, buffer)

  values = show()
  try:
    with torch.no_grad(), torch.random.fork_rng(devices):
      yield
    moved = outside_autograd(weights.statistics_now)(collective)
  finally:
    put_back(values)
  outside_autograd(keep)(moved)
