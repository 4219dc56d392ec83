"""Runs on all cores, each kept on the disk and never made twice.

A result is kept in a file named after the run's content, beside that content.
A run whose content changed has another name and is made anew. A change of the
code beneath (`code.of_training`) makes no run anew: its digest is kept, too,
and a study says how many results are of other code.
"""

import concurrent.futures
import multiprocessing
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from absl import logging
from tqdm import tqdm

from lab.core import logs
from lab.studies.parts import code
from lab.studies.parts.training import Result, Training

# Of hours: how many a second are made says nothing.
_BAR = '{l_bar}{bar}| {elapsed} so far, {remaining} left'
# Key of a kept file: the digest of the code that trained the run.
TRAINED_BY = 'trained_by'


def _path(training: Training, directory: str) -> pathlib.Path:
  return pathlib.Path(directory, f'{training.name}.json')


def _record(training: Training, directory: str) -> dict[str, Any] | None:
  """Return the run's file, if it is finished."""
  found = logs.read_json(str(_path(training, directory)))
  if not isinstance(found, dict) or found.get('content') != training.content:
    return None
  return found


def kept(training: Training, directory: str) -> Result | None:
  """The run's result, if it is finished."""
  found = _record(training, directory)
  return None if found is None else found['result']


def note_on_code(trainings: Iterable[Training], directory: str) -> str | None:
  """Say how many of the finished runs were trained by other code.

  Returns:
    A line; None where all were trained by this code, or nobody knows: files of
    earlier versions do not say by what.
  """
  if not pathlib.Path(directory).is_dir():
    return None
  records = {t.name: _record(t, directory) for t in trainings}
  found = {name: record for name, record in records.items() if record}
  others = [
    name
    for name, record in found.items()
    if TRAINED_BY in record and record[TRAINED_BY] != code.of_training()
  ]
  if not others:
    return None
  return (
    f'{len(others)} of the {len(found)} finished runs in {directory}, such as '
    f'{others[0]}, were trained by other code of weightavg or lab.workloads '
    'than this; a run whose file is deleted is made again.'
  )


def warn_of_other_code(trainings: Iterable[Training], directory: str) -> None:
  """Print `note_on_code` on standard error."""
  if note := note_on_code(trainings, directory):
    print(f'Warning: {note}', file=sys.stderr, flush=True)


def finished(trainings: Sequence[Training], directory: str) -> list[Result]:
  """Results of the finished runs, in order; nothing is run."""
  results = (kept(training, directory) for training in trainings)
  return [result for result in results if result is not None]


def _prepare_process() -> None:
  """One thread, and no log of each evaluation."""
  torch.set_num_threads(1)
  logging.set_verbosity(logging.WARNING)


def execute(
  training: Training, directory: str, trained_by: str | None = None
) -> Result:
  """Run in this process and keep the result.

  Args:
    training: the run.
    directory: where the result is kept.
    trained_by: `code.of_training`, where it has been computed.
  """
  trained_by = trained_by or code.of_training()
  result = training.execute(directory)
  record = {
    'content': training.content,
    TRAINED_BY: trained_by,
    'result': result,
  }
  logs.write_json(str(_path(training, directory)), record)
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
    # Here and not in each of the processes: it takes seconds.
    trained_by = code.of_training()
    # spawn: a forked child would inherit torch's thread pool, half dead.
    with concurrent.futures.ProcessPoolExecutor(
      min(jobs, len(missing)),
      mp_context=multiprocessing.get_context('spawn'),
      initializer=_prepare_process,
    ) as pool:
      futures = {
        pool.submit(execute, training, directory, trained_by): name
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
