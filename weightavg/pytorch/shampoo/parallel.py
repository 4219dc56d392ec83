"""Run independent work on a CPU's threads, whole items per thread.

Operations on one block are too small to divide: threads would synchronise after
every one of them, which is slow on a busy machine. Blocks are independent, so
each worker thread takes whole blocks and runs their operations single-threaded.
On a GPU the work runs in order on the calling thread.
"""

import concurrent.futures
import functools
import os
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
  threads = min(torch.get_num_threads(), len(items))
  if device.type != 'cpu' or threads < 2:
    return [function(*item) for item in items]
  call = functools.partial(_without_gradients, function)
  return list(_pool(torch.get_num_threads()).map(call, items))


def _without_gradients(function: Callable[..., Any], item: tuple) -> Any:
  # Gradient recording is a setting of the thread.
  with torch.no_grad():
    return function(*item)


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
  return concurrent.futures.ThreadPoolExecutor(
    threads,
    thread_name_prefix='shampoo',
    # Applies to the worker; the caller keeps its number of threads.
    initializer=torch.set_num_threads,
    initargs=(1,),
  )


# Threads do not outlive a fork.
if hasattr(os, 'register_at_fork'):
  os.register_at_fork(after_in_child=_pool.cache_clear)
