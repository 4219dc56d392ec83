"""Independent work on a CPU: one thread per block beats many per operation.

Operations on one block are too small to be divided well: threads wait for each
other after every one of them, and on a busy machine for a long time. Blocks
have nothing to wait for. So each worker thread takes whole blocks and runs
their operations single-threaded. A GPU gets the work in order.
"""

import concurrent.futures
import functools
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
    function: called without recording gradients; must not touch what another
      item's call does.
    items: arguments; the most expensive first.
    device: where the tensors are.
  """
  threads = min(torch.get_num_threads(), len(items))
  if device.type != 'cpu' or threads < 2:
    return [function(*item) for item in items]
  call = functools.partial(_without_gradients, function)
  return list(_pool(torch.get_num_threads()).map(call, items))


def _without_gradients(function: Callable[..., Any], item: tuple) -> Any:
  # Whether gradients are recorded is a property of the thread.
  with torch.no_grad():
    return function(*item)


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
  return concurrent.futures.ThreadPoolExecutor(
    threads,
    thread_name_prefix='shampoo',
    # Counts for the worker alone; the caller keeps its threads.
    initializer=torch.set_num_threads,
    initargs=(1,),
  )
