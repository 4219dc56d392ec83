"""Transfers to rank 0 in the background, also those that nobody waits for."""

import torch
import torch.distributed as dist
from gloo import run_on_ranks

from weightavg.pytorch.gather import GatherToRankZero


def _transfers(rank):
  group = dist.new_group([0, 1], backend='gloo')

  def start(value):
    tensors = [torch.full((3,), value), torch.full((2, 2), -value)]
    if rank == 1:
      return GatherToRankZero(group, tensors, []), []
    received = [torch.zeros(3), torch.zeros(2, 2)]
    return GatherToRankZero(group, [], [received]), received

  for late in (0, 1):
    # The first is given up before the other rank has begun it.
    if rank == late:
      dist.barrier()
    start(1.0)
    if rank != late:
      dist.barrier()
    transfer, received = start(2.0)
    transfer.wait()
    if rank == 0:
      assert received[0].eq(2.0).all()
      assert received[1].eq(-2.0).all()
    dist.barrier()


def test_a_transfer_that_is_given_up_leaves_nothing_to_the_next():
  run_on_ranks(2, _transfers)
