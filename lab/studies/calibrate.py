"""Tune a local workload's baseline and set its targets by the benchmark's rule.

`python -m lab.studies.calibrate --workload=click_dlrm --tune` trains NadamW for
0.75 x step_hint steps on a schedule of that length, from nothing:

1. With --tune: learning rates on a grid of factor two around a published
   AlgoPerf point, whose other hyperparameters stay, with seed 0. The grid grows
   while the best rate lies on its edge. The best point goes to
   tuning_search_spaces/local/<workload>.json.
2. Seeds 0 to 4 with that point. A target is the median over seeds of each
   run's best metric. It goes, with every run's value and the data's
   fingerprint, to lab/workloads/<workload>.json.

No averaging takes part. Finished runs are kept in --cache_dir, so that a
stopped calibration goes on where it was.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import math
import multiprocessing
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from absl import app, flags

from lab.core import logs
from lab.workloads import WORKLOADS, build_workload, targets

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET_FRACTION = 0.75
SEEDS = (0, 1, 2, 3, 4)
GRID = (-2, -1, 0, 1, 2)
# Six doublings either way are enough to know that something else is wrong.
_WIDEST = 6

# Which of AlgoPerf's five published points (from 0) each workload starts from;
# chosen before the first run, by what the point was made for: dropout where
# there are embedding tables, label smoothing where accuracy is judged.
BASE_POINTS = {
  'click_dlrm': 4,
  'denoise_unet': 2,
  'glyph_resnet': 1,
  'stdlib_lm': 2,
}

_FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Job:
  """One training run: workload, point, seed."""

  workload: str
  point: Mapping[str, float]
  seed: int


def split_rngs(seed: int, number: int) -> list[np.ndarray]:
  """Pairs of ints for the parts of a run, as a runner hands them out."""
  words = np.random.SeedSequence(seed).generate_state(2 * number)
  return list((words & 0x7FFFFFFF).astype(np.int64).reshape(number, 2))


def train(job: Job) -> dict[str, Any]:
  """Train the baseline in 75 % of the steps; the best of each split."""
  from submissions.nadamw import submission

  torch.set_num_threads(1)
  start = time.monotonic()
  workload = build_workload(job.workload)
  point = {**job.point, 'schedule_factor': TARGET_FRACTION}
  data_rng, model_rng, optimizer_rng, update_rng = split_rngs(job.seed, 4)
  queue = workload._build_input_queue(
    data_rng, 'train', '', workload.batch_size
  )
  model, model_state = workload.init_model_fn(model_rng)
  state = submission.init_optimizer_state(
    workload, model, model_state, point, optimizer_rng
  )
  steps = round(TARGET_FRACTION * workload.step_hint)
  curve = []
  for step in range(steps):
    state, model, model_state = submission.update_params(
      workload,
      model,
      workload.model_params_types,
      model_state,
      point,
      next(queue),
      workload.loss_type,
      state,
      [],
      step,
      update_rng,
    )
    # The first half is not looked at: the best lies near a schedule's end.
    is_due = (step + 1) % workload.eval_every_steps == 0 and step > steps // 2
    if is_due or step + 1 == steps:
      curve.append([step + 1, *_evaluate(workload, model, model_state)])
  result: dict[str, Any] = {'seed': job.seed}
  for column, split in ((1, 'validation'), (2, 'test')):
    row = best_row(curve, column, workload.higher_is_better)
    result[split] = None if row is None else row[column]
    result[f'{split}_step'] = None if row is None else row[0]
  result['seconds'] = round(time.monotonic() - start, 1)
  return result


def _evaluate(workload: Any, model: Any, model_state: Any) -> list[float]:
  sizes = {
    'validation': workload.num_validation_examples,
    'test': workload.num_test_examples,
  }
  return [
    workload._eval_model_on_split(
      split, size, workload.eval_batch_size, model, model_state, (0, 0), ''
    )[workload.target_metric_name]
    for split, size in sizes.items()
  ]


def best_row(
  rows: Sequence[Sequence[Any]], column: int, higher_is_better: bool
) -> Sequence[Any] | None:
  """First row with the best finite value in a column; None if there is none.

  >>> best_row([[10, 0.5], [20, 0.2], [30, 0.2]], 1, higher_is_better=False)
  [20, 0.2]
  """
  finite = [
    row
    for row in rows
    if row[column] is not None and math.isfinite(row[column])
  ]
  if not finite:
    return None
  pick = max if higher_is_better else min
  return pick(finite, key=lambda row: row[column])


def median_target(values: Sequence[float | None]) -> float:
  """Median over seeds.

  Raises:
    ValueError: a run has no value: it diverged.
  """
  known = [value for value in values if value is not None]
  if not known or len(known) < len(values):
    raise ValueError(f'Invalid values={values}. Every seed must have one.')
  return statistics.median(known)


def tune(
  base_rate: float,
  measure: Callable[[list[float]], list[float | None]],
  higher_is_better: bool,
) -> tuple[float, list[list[Any]]]:
  """Best learning rate on a grid of factor two that grows at its edges.

  Args:
    base_rate: the grid's centre.
    measure: best metric of each of some learning rates; None if it diverged.
    higher_is_better: direction of the metric.

  Returns:
    The best rate, and rows [rate, metric] in order of the rate.

  Raises:
    ValueError: all diverged.
  """
  exponents = list(GRID)
  rows: dict[int, list[Any]] = {}
  while True:
    new = [e for e in exponents if e not in rows]
    rates = [base_rate * 2.0**e for e in new]
    for e, rate, value in zip(new, rates, measure(rates), strict=True):
      rows[e] = [rate, value]
    table = [rows[e] for e in sorted(rows)]
    best = best_row(table, 1, higher_is_better)
    if best is None:
      raise ValueError(f'No learning rate of {rates} gave a finite metric.')
    place = sorted(rows)[table.index(list(best))]
    if place == min(rows) and place > -_WIDEST:
      exponents = [place - 1]
    elif place == max(rows) and place < _WIDEST:
      exponents = [place + 1]
    else:
      return best[0], table


class Runs:
  """Runs jobs in parallel, one thread each, and keeps their results.

  Args:
    folder: where finished runs are kept.
    workload: named in the key of a result, with its data and sizes.
    jobs: number of processes.
  """

  def __init__(self, folder: pathlib.Path, workload: Any, jobs: int) -> None:
    self._folder = folder / workload.name
    self._identity = {
      'data': workload.data_fingerprint(),
      'step_hint': workload.step_hint,
      'batch_size': workload.batch_size,
      'sizes': workload.sizes,
      'torch': torch.__version__,
    }
    self._jobs = jobs

  def _path(self, job: Job) -> pathlib.Path:
    key = {**self._identity, **dataclasses.asdict(job)}
    text = json.dumps(key, sort_keys=True)
    return (
      self._folder / f'{hashlib.sha256(text.encode()).hexdigest()[:16]}.json'
    )

  def __call__(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Result of each job, from its file where it has one."""
    self._folder.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not self._path(job).exists()]
    if missing:
      # spawn: a forked child would inherit torch's thread pool, half dead.
      context = multiprocessing.get_context('spawn')
      with concurrent.futures.ProcessPoolExecutor(
        min(self._jobs, len(missing)), mp_context=context
      ) as pool:
        futures = {pool.submit(train, job): job for job in missing}
        for future in concurrent.futures.as_completed(futures):
          self._keep(futures[future], future.result())
    return [json.loads(self._path(job).read_text()) for job in jobs]

  def _keep(self, job: Job, result: dict[str, Any]) -> None:
    path = self._path(job)
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(result))
    partial.rename(path)
    rate = job.point['learning_rate']
    print(
      f'{job.workload} lr={rate:.3g} seed={job.seed}: validation '
      f'{result["validation"]} in {result["seconds"]} s',
      flush=True,
    )


def calibrate(
  name: str, retune: bool, cache_dir: pathlib.Path, jobs: int
) -> dict[str, Any]:
  """Do what the module says for one workload; returns the written record."""
  workload = build_workload(name)
  run = Runs(cache_dir, workload, jobs)
  tuned_path = ROOT / workload.tuned_search_space
  record_path = targets.path(name)
  published = json.loads(
    (ROOT / 'tuning_search_spaces/nadamw.json').read_text()
  )
  point = published[BASE_POINTS[name]]
  if retune:

    def measure(rates: list[float]) -> list[float | None]:
      points = [{**point, 'learning_rate': rate} for rate in rates]
      results = run([Job(name, point, SEEDS[0]) for point in points])
      return [result['validation'] for result in results]

    rate, rows = tune(
      point['learning_rate'], measure, workload.higher_is_better
    )
    point = {**point, 'learning_rate': rate}
    _write(tuned_path, [point])
    tuning = [{'learning_rate': lr, 'validation': v} for lr, v in rows]
  else:
    if not tuned_path.exists():
      raise ValueError(f'{tuned_path} is missing. Call again with --tune.')
    (point,) = json.loads(tuned_path.read_text())
    tuning = []
    if record_path.exists():
      tuning = json.loads(record_path.read_text()).get('tuning', [])
  results = run([Job(name, point, seed) for seed in SEEDS])
  record = {
    'workload': name,
    'metric': workload.target_metric_name,
    'validation_target': median_target([r['validation'] for r in results]),
    'test_target': median_target([r['test'] for r in results]),
    'rule': (
      f'median over seeds of the best metric of NadamW alone, trained for '
      f'{TARGET_FRACTION} x step_hint steps on a schedule of that length'
    ),
    'step_hint': workload.step_hint,
    'batch_size': workload.batch_size,
    'seeds': results,
    'published_point': BASE_POINTS[name],
    'tuning': tuning,
    'data_fingerprint': workload.data_fingerprint(),
    'versions': {
      'python': platform.python_version(),
      'torch': torch.__version__,
      'numpy': np.__version__,
    },
    'command': f'python -m lab.studies.calibrate --workload={name} --tune',
  }
  _write(record_path, record)
  return record


def _write(path: pathlib.Path, content: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  logs.write_json(str(path), content)
  print(f'Wrote {path}', flush=True)


def _define_flags() -> None:
  flags.DEFINE_enum('workload', None, sorted(WORKLOADS), 'Which workload.')
  flags.DEFINE_bool('tune', False, 'Tune the learning rate first.')
  flags.DEFINE_integer('jobs', 2, 'Processes, one thread each.', 1)
  flags.DEFINE_string(
    'cache_dir', 'runs/calibration', 'Where finished runs are kept.'
  )
  flags.mark_flag_as_required('workload')


def main(argv: Sequence[str]) -> None:
  """Run the command line."""
  del argv
  try:
    record = calibrate(
      _FLAGS.workload,
      _FLAGS.tune,
      pathlib.Path(_FLAGS.cache_dir),
      _FLAGS.jobs,
    )
  except ValueError as error:
    sys.exit(f'Error: {error}')
  print(
    f'{record["workload"]}: {record["metric"]} target '
    f'{record["validation_target"]:.6g}, test {record["test_target"]:.6g}'
  )


if __name__ == '__main__':
  _define_flags()
  app.run(main)
