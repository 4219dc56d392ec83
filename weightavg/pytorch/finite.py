"""The look for values that are not finite, which no training step waits for.

On an accelerator the result of a look is a number on the device. It makes the
update of an average a no-op there, and reaches the host a sample later, or
when somebody asks: nothing synchronises in an update.

Ranks that average the same weights, or pieces of them, skip a sample together:
the largest of their numbers decides, on the device, by one all-reduce.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from weightavg.pytorch import distributed, dtensors, multi_tensor


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

  def __getstate__(self) -> dict[str, Any]:
    # An event is of this process: a copy has the result.
    self.must_skip()
    return self.__dict__ | {'_arrived': None}

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

  Args:
    collective: the ranks that look at the same time and decide alike: False for
      none, True for all, or a group.
  """

  def __init__(self, collective: bool | dist.ProcessGroup = False) -> None:
    self._collective = collective
    self._host: Tensor | None = None

  def look(
    self, tensors: Sequence[Tensor], dtensor_parameters: Sequence[Tensor] = ()
  ) -> bool | Look:
    """Look at all elements: True or False at once for tensors in host memory.

    Tensors on several devices are looked at, and waited for, at once, too.

    Args:
      tensors: the sample.
      dtensor_parameters: those of which `tensors` holds this rank's pieces;
        the ranks of their meshes decide alike, whatever `collective` is.
    """
    groups = self._groups(dtensor_parameters)
    devices = {t.device for t in tensors}
    if len(devices) > 1 or next(iter(devices)).type == 'cpu':
      is_finite = multi_tensor.all_finite(tensors)
      return not distributed.any_rank(not is_finite, groups, tensors[0].device)
    skip = multi_tensor.not_finite(tensors)
    distributed.max_over_ranks_(skip, groups)
    if not skip.is_cuda:
      return Look(skip)
    if self._host is None:
      self._host = torch.empty((), dtype=skip.dtype, pin_memory=True)
    self._host.copy_(skip, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return Look(skip, self._host, arrived)

  def _groups(self, tensors: Sequence[Tensor]) -> list[dist.ProcessGroup]:
    """The groups whose maximum decides, none within another one."""
    whole = distributed.group_of(self._collective)
    if whole is None:
      return dtensors.process_groups(tensors)
    ranks = set(dist.get_process_group_ranks(whole))
    return [whole] + [
      group
      for group in dtensors.process_groups(tensors)
      if not ranks.issuperset(dist.get_process_group_ranks(group))
    ]
