"""Averages divided over the ranks: each keeps and updates 1/world of them.

All weights hold the same values on every rank, so each rank can average its
share of them without communication. One all-gather at evaluation puts
the average together.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from absl import logging
from torch import Tensor

from weightavg.pytorch import multi_tensor
from weightavg.pytorch.device_placement import DevicePlacement
from weightavg.pytorch.distributed import rank_and_world
from weightavg.pytorch.finite import Look
from weightavg.pytorch.gather import GatherToRankZero, all_gather
from weightavg.schemes import Scheme

# Every tensor and every share begins at a multiple of this many bytes, so that
# a share ends between two elements of any dtype and loads are aligned.
_ALIGNMENT = 64


def _aligned(size: int) -> int:
  return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclasses.dataclass(frozen=True)
class Segment:
  """Elements begin..end, in memory order, of the index-th tensor."""

  index: int
  begin: int
  end: int
  offset: int  # bytes from the start of the share


class Layout:
  """All tensors laid out behind each other and cut into equal shares.

  >>> layout = Layout([torch.zeros(48), torch.zeros(80)], world_size=2)
  >>> layout.share_bytes
  256
  >>> [(s.index, s.begin, s.end) for s in layout.segments(0)]
  [(0, 0, 48), (1, 0, 16)]
  """

  def __init__(self, tensors: Sequence[Tensor], world_size: int) -> None:
    self._sizes = [(t.numel(), t.element_size()) for t in tensors]
    self.offsets = []
    end = 0
    for numel, itemsize in self._sizes:
      self.offsets.append(end)
      end += _aligned(numel * itemsize)
    self.share_bytes = _aligned(-(-end // world_size))

  def segments(self, rank: int) -> list[Segment]:
    """Segments of a rank's share."""
    first = rank * self.share_bytes
    last = first + self.share_bytes
    result = []
    for index, (numel, itemsize) in enumerate(self._sizes):
      start = self.offsets[index]
      begin = max(first - start, 0) // itemsize
      end = min((last - start) // itemsize, numel)
      if begin < end:
        offset = start + begin * itemsize - first
        result.append(Segment(index, begin, end, offset))
    return result


def in_memory_order(tensor: Tensor) -> Tensor:
  """The elements as one dimension; a view, unless memory has gaps."""
  dense = multi_tensor.flat(tensor)
  return tensor.reshape(-1) if dense is None else dense


def _like(flat: Tensor, template: Tensor) -> Tensor:
  """View flat memory in the shape and, if it is dense, strides of template."""
  if multi_tensor.flat(template) is None:
    return flat.view(template.shape)
  offset = flat.storage_offset()
  return flat.as_strided(template.shape, template.stride(), offset)


def _laid_out_like(tensor: Tensor, template: Tensor) -> Tensor:
  """`tensor` with its memory in the order of the template's elements."""
  if tensor.stride() == template.stride():
    return tensor
  if multi_tensor.flat(template) is None:
    return tensor.contiguous()
  return torch.empty_like(
    template, device=tensor.device, dtype=tensor.dtype
  ).copy_(tensor)


@dataclasses.dataclass(frozen=True)
class _Gathering:
  """Shares on their way to rank 0, and what they are made of.

  Args:
    transfer: the messages.
    shares: of each rank, bytes of each buffer; on other ranks their own only.
    sizes: of each buffer, bytes of each segment of each rank.
    dtypes: of each buffer, by tensor.
  """

  transfer: GatherToRankZero
  shares: list[list[Tensor]]
  sizes: list[list[list[int]]]
  dtypes: list[list[torch.dtype]]


class ShardedPlacement(DevicePlacement):
  """Keeps this rank's share of the averages.

  Args:
    scheme: with its length in samples.
    tensors: the weights, equal on all ranks.
    checkpoints: whether `collect` brings all shares to rank 0, over a gloo
      group of its own, so that it cannot be mixed up with the collectives of a
      simultaneous evaluation.
    group: the ranks; None for all. Rank 0 is the first of them.
  """

  def __init__(
    self,
    scheme: Scheme,
    tensors: Sequence[Tensor],
    checkpoints: bool = True,
    group: dist.ProcessGroup | None = None,
  ) -> None:
    self._ranks = group
    self._rank, self._world_size = rank_and_world(group)
    if not dist.is_initialized():
      logging.log_first_n(
        logging.INFO, 'No process group: the average is sharded over 1 rank.', 1
      )
    self._layout = Layout(tensors, self._world_size)
    self._segments = self._layout.segments(self._rank)
    # The layout of the shares, whatever becomes of the weights': a model may be
    # made channels-last later.
    self._templates = [
      torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device='meta')
      for t in tensors
    ]
    super().__init__(scheme, self._share_of(tensors))
    self._checkpoints = checkpoints
    self._group = None
    if self._world_size > 1 and checkpoints:
      self._group = dist.new_group(
        dist.get_process_group_ranks(group),
        backend='gloo',
        # The ranks outside of `group` do not take part.
        use_local_synchronization=group is not None,
      )
    self._gathering: _Gathering | None = None
    # Whole buffers that a checkpoint gave, until the next sample.
    self._restored: list[list[Tensor]] | None = None

  def __getstate__(self) -> dict[str, Any]:
    """Refuse a copy or pickle of what several ranks share."""
    if self._world_size > 1:
      raise RuntimeError(
        'Invalid copy. An average that is sharded over several ranks cannot be '
        'copied: build another Averager and load the state_dict.'
      )
    return self.__dict__.copy()

  def _share_of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
    return [
      in_memory_order(
        _laid_out_like(tensors[s.index], self._templates[s.index])
      )[s.begin : s.end]
      for s in self._segments
    ]

  def add(self, tensors: Sequence[Tensor], look: Look | None = None) -> None:
    """Take this rank's share of the tensors in as the next sample."""
    self._gathering = self._restored = None
    super().add(self._share_of(tensors), look)

  def shown(self, tensors: Sequence[Tensor], which: int = 0) -> list[Tensor]:
    """The whole average: one all-gather in the weights' dtypes."""
    device = tensors[0].device
    size = self._layout.share_bytes
    share = torch.empty(size, dtype=torch.uint8, device=device)
    averages = self._accumulators[which].average()
    for segment, average in zip(self._segments, averages, strict=True):
      dtype = tensors[segment.index].dtype
      part = share[segment.offset :]
      part = part[: average.numel() * dtype.itemsize]
      part.view(dtype).copy_(average)
    if self._world_size == 1:
      whole = share
    else:
      whole = torch.empty(
        size * self._world_size, dtype=torch.uint8, device=device
      )
      all_gather(whole, share, self._ranks)
    result = []
    for template, offset in zip(
      self._templates, self._layout.offsets, strict=True
    ):
      nbytes = template.numel() * template.element_size()
      flat = whole[offset : offset + nbytes].view(template.dtype)
      # A copy: tensors that share one storage under several dtypes cannot be
      # saved, and any one of them would be saved with all the others.
      result.append(_like(flat.clone(), template))
    return result

  def collect(self) -> None:
    """Start to gather all shares on rank 0; nothing waits here.

    What is sent is a copy in host memory, the only part that is billed:
    evaluation and training may continue.
    """
    is_known = self._gathering is not None or self._restored is not None
    if self._group is None or is_known:
      return
    own = [
      torch.cat([b.cpu().view(torch.uint8) for b in buffer])
      if buffer
      else torch.empty(0, dtype=torch.uint8)
      for buffer in self._own_buffers()
    ]
    dtypes = self._dtypes(self._templates)
    sizes = [self._sizes(kinds) for kinds in dtypes]
    shares = [own] + [
      [torch.empty(sum(size[rank]), dtype=torch.uint8) for size in sizes]
      for rank in range(1, self._world_size if self._rank == 0 else 1)
    ]
    transfer = GatherToRankZero(self._group, own, shares[1:])
    self._gathering = _Gathering(transfer, shares, sizes, dtypes)

  def _sizes(self, dtypes: list[torch.dtype]) -> list[list[int]]:
    """Bytes of each segment of each rank, in a buffer of these dtypes."""
    return [
      [
        (s.end - s.begin) * dtypes[s.index].itemsize
        for s in self._layout.segments(rank)
      ]
      for rank in range(self._world_size)
    ]

  def _unpack(
    self,
    received: list[Tensor],
    sizes: list[list[int]],
    dtypes: list[torch.dtype],
  ) -> list[Tensor]:
    flats = [
      torch.empty(t.numel(), dtype=dtype)
      for t, dtype in zip(self._templates, dtypes, strict=True)
    ]
    for rank, share in enumerate(received):
      parts = share[: sum(sizes[rank])].split(sizes[rank])
      segments = self._layout.segments(rank)
      for segment, part in zip(segments, parts, strict=True):
        flat = flats[segment.index].view(torch.uint8)
        itemsize = dtypes[segment.index].itemsize
        flat[segment.begin * itemsize : segment.end * itemsize] = part
    return [
      _like(flat, template)
      for flat, template in zip(flats, self._templates, strict=True)
    ]

  def buffers(self) -> list[list[Tensor]] | None:
    """Whole buffers on rank 0 after `collect`; None otherwise."""
    if self.count == 0:
      return []
    if self._world_size == 1:
      return [self._alone(buffer) for buffer in self._own_buffers()]
    if self._rank != 0:
      return None
    if self._restored is not None:
      return self._restored
    if self._gathering is None:
      if self._checkpoints:
        logging.warning(
          'The state lacks the shares of the other ranks and cannot be loaded: '
          'call swap_in() on all ranks right before state_dict().'
        )
      return None
    try:
      self._gathering.transfer.wait()
    except RuntimeError as error:
      logging.warning('The shares of the average did not arrive: %s', error)
      return None
    return [
      self._unpack([share[i] for share in self._gathering.shares], sizes, kinds)
      for i, (sizes, kinds) in enumerate(
        zip(self._gathering.sizes, self._gathering.dtypes, strict=True)
      )
    ]

  def _alone(self, buffer: list[Tensor]) -> list[Tensor]:
    """A single rank's share is the whole; tensors without elements lack."""
    flats = {
      s.index: flat for s, flat in zip(self._segments, buffer, strict=True)
    }
    return [
      _like(flats.get(index, torch.empty(0, dtype=template.dtype)), template)
      for index, template in enumerate(self._templates)
    ]

  def restore(
    self,
    count: int,
    buffers: Sequence[Sequence[Tensor]],
    tensors: Sequence[Tensor],
  ) -> None:
    """Take this rank's share of whole buffers.

    The whole ones are kept until the next sample: a run that is resumed at its
    very end saves again without another evaluation.
    """
    whole = [
      [
        _laid_out_like(saved, template)
        for saved, template in zip(buffer, self._templates, strict=True)
      ]
      for buffer in buffers
    ]
    shares = [self._share_of(buffer) for buffer in whole]
    super().restore(count, shares, self._share_of(tensors))
    self._gathering = None
    if self._group is not None:
      # Only rank 0 saves, from host memory.
      kept = whole if self._rank == 0 else []
      self._restored = [[t.cpu() for t in buffer] for buffer in kept]
