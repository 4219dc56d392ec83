"""Run a function on several gloo ranks, each a process of its own."""

import datetime
import gc
import tempfile
import traceback

import fork_server
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _rank_main(rank, world_size, rendezvous, function, args):
  torch.set_num_threads(1)
  dist.init_process_group(
    'gloo',
    init_method=f'file://{rendezvous}/store',
    rank=rank,
    # A rank that waits for a dead one ends, on a busy machine, too.
    timeout=datetime.timedelta(minutes=3),
    world_size=world_size,
  )
  try:
    function(rank, *args)
  except BaseException as error:
    traceback.clear_frames(error.__traceback__)
    raise
  finally:
    # As lab.run.distributed.stop: no model may outlive the group.
    gc.collect()
    dist.destroy_process_group()


def run_on_ranks(world_size, function, *args):
  """Call function(rank, *args) on every rank; a failure on any is raised."""
  with tempfile.TemporaryDirectory() as rendezvous:
    fork_server.start()
    mp.start_processes(
      _rank_main,
      (world_size, rendezvous, function, args),
      nprocs=world_size,
      start_method='forkserver',
    )
