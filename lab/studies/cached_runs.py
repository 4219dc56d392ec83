"""Many runs on all cores, each kept on the disk and never made twice.

A result is kept under the run's name, beside what the run was: one of another
budget, target or set of candidates is made anew. A job is a dictionary of plain
values with the key 'name'; a run is a function from a job to plain values.
"""

import concurrent.futures
import json
import multiprocessing
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from absl import logging

from lab.core import logs

Job = dict[str, Any]
Run = Callable[[Job, str], dict[str, Any]]


def _plain(job: Job) -> Job:
  """As a file has it: tuples are lists there."""
  return json.loads(json.dumps(job))


def _path(job: Job, directory: str) -> pathlib.Path:
  return pathlib.Path(directory, f'{job["name"]}.json')


def _kept(job: Job, directory: str) -> dict[str, Any] | None:
  """The job's result, if it is there and is this very job's."""
  kept = logs.read_json(str(_path(job, directory)))
  if not isinstance(kept, dict) or kept.get('job') != _plain(job):
    return None
  return kept['result']


def _cached(run: Run, job: Job, directory: str) -> dict[str, Any]:
  torch.set_num_threads(1)
  logging.set_verbosity(logging.WARNING)
  result = _kept(job, directory)
  if result is None:
    result = run(job, directory)
    path = str(_path(job, directory))
    logs.write_json(path, {'job': _plain(job), 'result': result})
  return result


def finished(jobs: Sequence[Job], directory: str) -> list[dict[str, Any]]:
  """Results of the jobs that are finished, in order; nothing is run."""
  results = (_kept(job, directory) for job in jobs)
  return [result for result in results if result is not None]


def run_all(
  run: Run, jobs: Sequence[Job], directory: str, processes: int
) -> Iterator[dict[str, Any]]:
  """Results as they come; what is finished already is read.

  Args:
    run: a function of a module, called with a job and the directory in a
      process of its own, with one thread.
    jobs: in the order in which they are to start.
    directory: where results are kept.
    processes: at a time.
  """
  pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
  # spawn: a forked child would inherit torch's thread pool, half dead.
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(
    processes, mp_context=context
  ) as pool:
    futures = {
      pool.submit(_cached, run, job, directory): job['name'] for job in jobs
    }
    try:
      for done, future in enumerate(
        concurrent.futures.as_completed(futures), 1
      ):
        yield future.result()
        print(f'[{done}/{len(jobs)}]', futures[future], flush=True)
    finally:
      for future in futures:
        future.cancel()
