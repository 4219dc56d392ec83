"""The threads of Shampoo's roots: a forked process, equal steps, autocast."""

import os
import subprocess
import sys
import threading

import pytest
import shampoo_ranks
import torch
from shampoo_ranks import assert_same, snapshot

from weightavg.pytorch.shampoo import parallel

CPU = torch.device('cpu')


@pytest.mark.parametrize('threads', [1, 2])
def test_a_step_inside_autocast_is_one_outside(threads):
  before = torch.get_num_threads()
  torch.set_num_threads(threads)
  try:
    dtypes = dict.fromkeys(('dtype', 'preconditioner_dtype'), torch.float32)
    runs = [shampoo_ranks.build(**dtypes) for _ in range(2)]
    shampoo_ranks.train(*runs[0], 1, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
      shampoo_ranks.train(*runs[1], 1, 4)
  finally:
    torch.set_num_threads(before)
  assert_same(*(snapshot(*run) for run in runs))


FORK = """
import os
import threading
import torch
from weightavg.pytorch.shampoo import parallel

torch.set_num_threads(2)
both, items = threading.Barrier(2), [(1,), (-2,)]

def meet(number):
  both.wait()
  return abs(number)

assert parallel.run_all(meet, items, torch.device('cpu')) == [1, 2]
child = os.fork()
if not child:
  # Jobs for threads that are gone would wait for ever.
  torch.set_num_threads(2)
  done = parallel.run_all(abs, items, torch.device('cpu')) == [1, 2]
  os._exit(0 if done else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_a_forked_process_has_threads_of_its_own():
  """In a process without JAX, which warns of forks."""
  subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', FORK], check=True, timeout=300
  )


def test_later_threads_keep_the_number_of_the_process():
  before, found = torch.get_num_threads(), []
  torch.set_num_threads(3)
  try:
    parallel._pool.cache_clear()
    weights, optimizer = shampoo_ranks.build()
    shampoo_ranks.train(weights, optimizer, 1, 2)
    thread = threading.Thread(
      target=lambda: found.append(torch.get_num_threads())
    )
    thread.start()
    thread.join()
    inside = parallel.run_all(torch.get_num_threads, [()] * 9, CPU)
  finally:
    torch.set_num_threads(before)
  assert found == [3]
  assert set(inside) == {1}


def test_threads_change_nothing():
  results = []
  before = torch.get_num_threads()
  for threads in (1, 3):
    torch.set_num_threads(threads)
    try:
      weights, optimizer = shampoo_ranks.build()
      shampoo_ranks.train(weights, optimizer, 1, 5)
    finally:
      torch.set_num_threads(before)
    results.append(shampoo_ranks.trained(weights))
  for name, weight in results[0].items():
    assert torch.equal(weight, results[1][name])
