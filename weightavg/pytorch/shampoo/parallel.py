"""Run independent work on a CPU's threads, whole items per thread.

Operations on one block are too small to divide: threads would synchronise after
every one of them, which is slow on a busy machine. Blocks are independent, so
each worker thread takes whole blocks and runs their operations single-threaded.
On a GPU the work runs in order on the calling thread.
"""

import concurrent.futures
import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch


def run_all(
  function: Callable[..., Any],
  items: Sequence[tuple],
  device: torch.device,
) -> list[Any]:
  """[function(*item) for item in items], on as many threads as torch may use.

  Args:
    function: called without recording gradients; calls must not change what
      other calls use.
    items: arguments of each call, the most expensive first.
    device: device of the tensors.
  """
  threads = torch.get_num_threads()
  if device.type != 'cpu' or min(threads, len(items)) < 2:
    return [function(*item) for item in items]
  call = functools.partial(_without_gradients, function)
  return list(_pool(threads).map(call, items))


def _without_gradients(function: Callable[..., Any], item: tuple) -> Any:
  # Gradient recording is a setting of the thread.
  with torch.no_grad():
    return function(*item)


def _become_serial() -> None:
  torch.set_num_threads(1)
  # A thread takes the number of the process when it first asks for one.
  torch.get_num_threads()


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
  pool = concurrent.futures.ThreadPoolExecutor(
    threads,
    thread_name_prefix='shampoo',
    initializer=_become_serial,
  )
  # The number is the worker's own, and that of any thread yet to come: once all
  # workers have theirs, the caller sets it back.
  all_started = threading.Barrier(threads)
  for _ in pool.map(lambda _: all_started.wait(), range(threads)):
    pass
  torch.set_num_threads(threads)
  return pool


# Threads do not outlive a fork.
if hasattr(os, 'register_at_fork'):
  os.register_at_fork(after_in_child=_pool.cache_clear)
