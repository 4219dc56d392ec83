"""Runs on all cores, each kept on the disk and never made twice.

A result is kept in a file named after the run's content, beside that content.
A run that changed in any way has another name and is made anew.
"""

import concurrent.futures
import multiprocessing
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import torch
from absl import logging
from tqdm import tqdm

from lab.core import logs
from lab.studies.parts.training import Result, Training

# Of hours: how many a second are made says nothing.
_BAR = '{l_bar}{bar}| {elapsed} so far, {remaining} left'


def _path(training: Training, directory: str) -> pathlib.Path:
  return pathlib.Path(directory, f'{training.name}.json')


def kept(training: Training, directory: str) -> Result | None:
  """The run's result, if it is finished."""
  found = logs.read_json(str(_path(training, directory)))
  if not isinstance(found, dict) or found.get('content') != training.content:
    return None
  return found['result']


def finished(trainings: Sequence[Training], directory: str) -> list[Result]:
  """Results of the finished runs, in order; nothing is run."""
  results = (kept(training, directory) for training in trainings)
  return [result for result in results if result is not None]


def _prepare_process() -> None:
  """One thread, and no log of each evaluation."""
  torch.set_num_threads(1)
  logging.set_verbosity(logging.WARNING)


def execute(training: Training, directory: str) -> Result:
  """Run in this process and keep the result."""
  result = training.execute(directory)
  content = {'content': training.content, 'result': result}
  logs.write_json(str(_path(training, directory)), content)
  return result


def run_all(
  trainings: Sequence[Training],
  directory: str,
  jobs: int,
  hours_of: Callable[[Training], float] | None = None,
) -> list[Result]:
  """Results of all runs, in order; finished ones are read.

  A run that raises does not keep the others from being made: the first error is
  raised after them.

  Args:
    trainings: in the order in which they are to start.
    directory: where results and logs are kept.
    jobs: number of processes, one thread each.
    hours_of: how long a run takes in one process; only ratios matter. The time
      left is then counted in hours and not in runs.
  """
  pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
  results = {t.name: kept(t, directory) for t in trainings}
  missing = {t.name: t for t in trainings if results[t.name] is None}
  cost = {t.name: 1.0 if hours_of is None else hours_of(t) for t in trainings}
  total, left = sum(cost.values()), sum(cost[name] for name in missing)
  errors: list[BaseException] = []
  start = time.monotonic()
  bar = tqdm(
    total=round(total, 2),
    initial=round(total - left, 2),
    unit='run',
    bar_format=None if hours_of is None else _BAR,
    # One rate for all: two processes finish at the same time, and then none.
    smoothing=0.0,
    disable=None,
  )
  if missing:
    # spawn: a forked child would inherit torch's thread pool, half dead.
    with concurrent.futures.ProcessPoolExecutor(
      min(jobs, len(missing)),
      mp_context=multiprocessing.get_context('spawn'),
      initializer=_prepare_process,
    ) as pool:
      futures = {
        pool.submit(execute, training, directory): name
        for name, training in missing.items()
      }
      try:
        for future in concurrent.futures.as_completed(futures):
          name = futures[future]
          error = future.exception()
          if error is not None:
            # Hours of other runs do not wait for a correction of this one.
            print(f'{name} failed: {error}', file=sys.stderr, flush=True)
            errors.append(error)
            continue
          results[name] = future.result()
          bar.update(round(cost[name], 4))
          if bar.disable:
            done = sum(result is not None for result in results.values())
            made = sum(cost[n] for n in missing if results[n] is not None)
            seconds = (time.monotonic() - start) * (left - made) / made
            print(
              f'[{done}/{len(results)}] {name}, {seconds / 3600:.1f} h left',
              file=sys.stderr,
              flush=True,
            )
      finally:
        for future in futures:
          future.cancel()
  bar.close()
  if errors:
    raise errors[0]
  return [result for t in trainings if (result := results[t.name]) is not None]
