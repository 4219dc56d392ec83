"""One process or many: who logs, whose clock counts, how errors end all."""

import dataclasses
import gc
import os
import time
from typing import Any

import torch
import torch.distributed as dist

from lab.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Context:
  """Place of this process among those of the run.

  Args:
    rank: Global rank; rank 0 logs and writes.
    world_size: Number of processes.
    device: Device that this process trains on.
  """

  rank: int = 0
  world_size: int = 1
  device: torch.device = dataclasses.field(
    default_factory=lambda: torch.device('cpu')
  )

  @property
  def is_main(self) -> bool:
    """True on the rank that logs and writes."""
    return self.rank == 0

  def clock(self) -> float:
    """Wall-clock seconds after all queued work, the latest of all ranks.

    Under several processes this is a collective, so it is a barrier too.
    """
    now, _ = self._agreed_clock(0)
    return now

  def clock_and_largest(self, number: int) -> tuple[float, int]:
    """The clock, and the largest of the ranks' numbers by the same collective.

    Args:
      number: Of this rank; a whole number below 2^53.
    """
    if self.world_size == 1:
      return self.clock(), number
    return self._agreed_clock(number)

  def _agreed_clock(self, number: int) -> tuple[float, int]:
    if self.device.type == 'cuda':
      torch.cuda.synchronize(self.device)
    now = time.time()
    if self.world_size == 1:
      return now, number
    both = torch.tensor([now, number], dtype=torch.float64, device=self.device)
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    latest, largest = both.tolist()
    return latest, int(largest)

  def barrier(self) -> None:
    """Wait for all ranks."""
    self.broadcast(None)

  def broadcast(self, value: Any) -> Any:
    """The value of rank 0, on every rank."""
    if self.world_size == 1:
      return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=self.device)
    return box[0]

  def agree(self, error: InputError | None) -> None:
    """Raise on every rank if one of them has an error, the first one's."""
    if self.world_size == 1:
      messages = [str(error) if error else None]
    else:
      messages = [None] * self.world_size
      dist.all_gather_object(messages, str(error) if error else None)
    for message in messages:
      if message is not None:
        raise InputError(message)


def start() -> Context:
  """Join the process group that torchrun described, if it did.

  Raises:
    InputError: there are fewer CUDA devices than processes on this machine.
  """
  if 'LOCAL_RANK' not in os.environ:
    cuda = torch.cuda.is_available()
    return Context(device=torch.device('cuda' if cuda else 'cpu'))
  local_rank = int(os.environ['LOCAL_RANK'])
  device = torch.device('cpu')
  backend = 'gloo'
  if torch.cuda.is_available():
    local_world_size = int(os.environ.get('LOCAL_WORLD_SIZE', '1'))
    if local_world_size > torch.cuda.device_count():
      raise InputError(
        f'Invalid nproc_per_node={local_world_size}. Must be at most '
        f'{torch.cuda.device_count()}, the number of CUDA devices.'
      )
    device = torch.device('cuda', local_rank)
    torch.cuda.set_device(device)
    backend = 'nccl'
  # torchrun keeps one store over restarts. Without a prefix a rank that is
  # started again may read the addresses of the processes before.
  attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
  store, rank, world_size = next(dist.rendezvous('env://'))
  dist.init_process_group(
    backend,
    store=dist.PrefixStore(f'attempt_{attempt}', store),
    rank=rank,
    world_size=world_size,
  )
  return Context(dist.get_rank(), dist.get_world_size(), device)


def stop() -> None:
  """Leave the process group, if there is one.

  No caller may refer to a model any more, as a frame of a caught error does.
  """
  if dist.is_initialized():
    # Only the collector of cycles frees DistributedDataParallel. A model that
    # outlives the group here frees the group, at the end of the process, while
    # it holds the interpreter lock: it then waits for Gloo's threads, which may
    # wait for this lock.
    gc.collect()
    dist.destroy_process_group()
