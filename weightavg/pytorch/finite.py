"""The look for values that are not finite, which no training step waits for.

On an accelerator the result of a look is a number on the device. It makes the
update of an average a no-op there, and reaches the host a sample later, or
when somebody asks: nothing synchronises in an update.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from weightavg.pytorch import dtensors, multi_tensor


class Look:
  """Whether one sample must be skipped: on its device now, on the host later.

  Args:
    skip: 0-dimensional float32, 1 if the sample is not finite and 0 if it is.
  """

  def __init__(self, skip: Tensor) -> None:
    self.skip = skip
    self._host = skip
    self._arrived: torch.cuda.Event | None = None
    if skip.is_cuda:
      self._host = torch.empty((), dtype=skip.dtype, pin_memory=True)
      self._host.copy_(skip, non_blocking=True)
      self._arrived = torch.cuda.Event()
      self._arrived.record()

  def must_skip(self) -> bool:
    """Read the result; waits for the device if it has not come that far."""
    if self._arrived is not None:
      self._arrived.synchronize()
    return bool(self._host.item())


def look(
  tensors: Sequence[Tensor], parameters: Sequence[Tensor] = ()
) -> bool | Look:
  """Look at all elements: True or False at once for tensors in host memory.

  Tensors on several devices are looked at, and waited for, at once, too.

  Args:
    tensors: the sample.
    parameters: those of which `tensors` holds this rank's pieces. Where they
      are distributed, the ranks agree by one all-reduce of a number.
  """
  is_distributed = any(map(dtensors.is_dtensor, parameters))
  devices = {t.device for t in tensors}
  if len(devices) == 1 and next(iter(devices)).type != 'cpu':
    skip = multi_tensor.not_finite(tensors)
    dtensors.agree(skip, parameters)
    return Look(skip)
  is_finite = multi_tensor.all_finite(tensors)
  if is_distributed:
    skip = torch.tensor(float(not is_finite))
    dtensors.agree(skip, parameters)
    is_finite = not skip.item()
  return is_finite
