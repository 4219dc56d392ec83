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
  """The decision to skip a sample: on its device now, on the host later.

  Args:
    skip: 0-dimensional float32, 1 if the sample is not finite and 0 if it is.
    host: where a copy of it arrives; by default itself.
    arrived: recorded behind that copy.
  """

  def __init__(
    self,
    skip: Tensor,
    host: Tensor | None = None,
    arrived: torch.cuda.Event | None = None,
  ) -> None:
    self.skip = skip
    self._host = skip if host is None else host
    self._arrived = arrived
    self._result: bool | None = None

  def must_skip(self) -> bool:
    """Read the result; waits for the device if it has not come that far."""
    if self._result is None:
      if self._arrived is not None:
        self._arrived.synchronize()
      self._result = bool(self._host.item())
    return self._result


class Looker:
  """Looks at one sample after the other.

  The result of a look must be read before the next one: both arrive in the same
  pinned memory, which takes long to allocate.
  """

  def __init__(self) -> None:
    self._host: Tensor | None = None

  def look(
    self, tensors: Sequence[Tensor], distributed: Sequence[Tensor] = ()
  ) -> bool | Look:
    """Look at all elements: True or False at once for tensors in host memory.

    Tensors on several devices are looked at, and waited for, at once, too.

    Args:
      tensors: the sample.
      distributed: DTensors of which `tensors` holds this rank's pieces. If
        there are any, the ranks agree by one all-reduce of a number.
    """
    devices = {t.device for t in tensors}
    if len(devices) > 1 or next(iter(devices)).type == 'cpu':
      is_finite = multi_tensor.all_finite(tensors)
      if distributed:
        skip = torch.tensor(float(not is_finite))
        dtensors.agree(skip, distributed)
        is_finite = not skip.item()
      return is_finite
    skip = multi_tensor.not_finite(tensors)
    dtensors.agree(skip, distributed)
    if not skip.is_cuda:
      return Look(skip)
    if self._host is None:
      self._host = torch.empty((), dtype=skip.dtype, pin_memory=True)
    self._host.copy_(skip, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return Look(skip, self._host, arrived)
