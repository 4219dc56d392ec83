"""Gather tensors of all ranks: on rank 0 without waiting, or on every rank."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

# gloo counts the bytes of a message in a 32-bit int.
_MESSAGE_BYTES = 1 << 29


class GatherToRankZero:
  """Tensors on their way to rank 0 of a gloo group.

  The constructor only starts the transfers. Ranks other than 0 send copies in
  host memory, so training may change the tensors at once, and give them back
  once they are sent. A transfer that nobody waits for is completed all the
  same: one that was cut short would leave its messages to the next.

  Args:
    group: gloo group of the ranks; one that nothing else uses keeps the
      messages apart from other collectives.
    outgoing: what this rank sends; ignored on rank 0.
    incoming: on rank 0, for each other rank in order, contiguous CPU tensors of
      the shapes and dtypes that this rank sends; ignored elsewhere.
  """

  def __init__(
    self,
    group: dist.ProcessGroup,
    outgoing: Sequence[Tensor],
    incoming: Sequence[Sequence[Tensor]],
  ) -> None:
    works: list[Any] = []
    # Must live until they are sent or received.
    pieces: list[Tensor] = []
    if dist.get_rank(group) == 0:
      for peer, tensors in enumerate(incoming, start=1):
        source = dist.get_global_rank(group, peer)
        for tag, piece in enumerate(_messages(tensors)):
          works.append(dist.irecv(piece, src=source, group=group, tag=tag))
          pieces.append(piece)
    else:
      root = dist.get_global_rank(group, 0)
      for tag, piece in enumerate(_messages(outgoing)):
        copy = piece.detach().to('cpu', copy=True)
        works.append(dist.isend(copy, dst=root, group=group, tag=tag))
        pieces.append(copy)
    self._errors: list[BaseException] = []
    # gloo completes a transfer when it is waited for.
    self._thread = threading.Thread(
      target=_complete,
      args=(works, pieces, self._errors),
      name='gather-to-rank-0',
      daemon=True,
    )
    self._thread.start()

  def wait(self) -> None:
    """Wait until this rank has sent or received everything."""
    self._thread.join()
    if self._errors:
      raise self._errors[0]


def _complete(
  works: list[Any], pieces: list[Tensor], errors: list[BaseException]
) -> None:
  try:
    for work in works:
      work.wait()
  except BaseException as error:
    errors.append(error)
  works.clear()
  pieces.clear()


def all_gather(
  result: Tensor, part: Tensor, group: dist.ProcessGroup | None = None
) -> None:
  """Write every rank's `part`, one after the other, to `result` on all ranks.

  Args:
    result: one-dimensional, as long as all parts.
    part: one-dimensional, equally long on every rank.
    group: the ranks; None for all.
  """
  # torch 2.13 renamed the collective and warns of the old name.
  if hasattr(dist, 'all_gather_single'):
    dist.all_gather_single(result, part, group=group)
  else:
    dist.all_gather_into_tensor(result, part, group=group)


def _messages(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
  for tensor in tensors:
    flat = tensor.view(-1)
    yield from flat.split(_MESSAGE_BYTES // flat.element_size())
