"""Set a local workload's targets by the benchmark's 75 % rule.

NadamW alone is trained for 0.75 x step_hint steps, on a schedule of that
length, with seeds 0 to 4. A target is the median over seeds of each run's best
metric in the second half. Targets, every seed's values and the fingerprint of
the data go to lab/workloads/<workload>.json.

With --tune, learning rates on a grid of factor two around a published AlgoPerf
point, whose other hyperparameters stay, are tried first, with seed 0. The grid
grows while the best rate is on its edge. The best point goes to
tuning_search_spaces/local/<workload>.json. `tune` searches more than the rate.
"""

import json
import math
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lab.core import logs
from lab.core.errors import InputError
from lab.studies.parts import execution, study
from lab.studies.parts.averages import Averages
from lab.studies.parts.training import Result, Training, tuned_point
from lab.workloads import WORKLOADS, build_workload, targets

TARGET_FRACTION = 0.75
SEEDS = (0, 1, 2, 3, 4)
GRID = (-2, -1, 0, 1, 2)
# Six doublings either way are enough to know that something else is wrong.
_WIDEST = 6
RULE = (
  'median over seeds of the best metric of NadamW alone, trained for '
  f'{TARGET_FRACTION} x step_hint steps on a schedule of that length'
)


def training(workload: str, point: Mapping[str, Any], seed: int) -> Training:
  """Describe a run of the baseline; its second half is evaluated."""
  return Training(
    workload=workload,
    submission='nadamw',
    point=point,
    seed=seed,
    follower=Averages,
    follows={
      'candidates': {'raw': {'averaging_scheme': 'none'}},
      # The best metric is near the end of a schedule.
      'evaluated_from': 0.5,
      'splits': ('validation', 'test'),
    },
    budget_factor=TARGET_FRACTION,
    needs_target=False,
  )


def best_of(
  curve: Sequence[Sequence[float]], higher_is_better: bool
) -> tuple[int | None, float | None]:
  """Return step and value of the first best finite value, or None twice.

  >>> best_of([[10, 1.0, 0.5], [20, 2.0, 0.2], [30, 3.0, 0.2]], False)
  (20, 0.2)
  """
  finite = [(step, value) for step, _, value in curve if math.isfinite(value)]
  if not finite:
    return None, None
  pick = max if higher_is_better else min
  step, value = pick(finite, key=lambda pair: pair[1])
  return int(step), value


def row_of(result: Result) -> dict[str, Any]:
  """Make a row of seed, best metric and its step by split, and seconds."""
  row: dict[str, Any] = {'seed': result['seed']}
  for split, key in (('validation', 'curves'), ('test', 'test_curves')):
    curve = result[key]['raw']
    step, value = best_of(curve, result['higher_is_better'])
    row |= {split: value, f'{split}_step': step}
  return row | {'seconds': round(result['curves']['raw'][-1][1], 1)}


def median_target(values: Sequence[float | None]) -> float:
  """Return the median over seeds.

  Raises:
    InputError: a run has no value: it diverged.
  """
  known = [value for value in values if value is not None]
  if not known or len(known) < len(values):
    raise InputError(f'Invalid values={values}. Every seed must have one.')
  return statistics.median(known)


def tune_rate(
  base_rate: float,
  measure: Callable[[list[float]], list[float | None]],
  higher_is_better: bool,
) -> tuple[float, list[dict[str, Any]]]:
  """Find the best learning rate on a grid that grows at its edges.

  Args:
    base_rate: the grid's centre.
    measure: best metric of each of some learning rates; None if it diverged.
    higher_is_better: direction of the metric.

  Returns:
    The best rate, and rows with learning_rate and validation by rate.

  Raises:
    InputError: all diverged.
  """
  found: dict[int, float | None] = {}
  new, order, best = list(GRID), list(GRID), 0
  while new:
    values = measure([base_rate * 2.0**e for e in new])
    found |= dict(zip(new, values, strict=True))
    order = sorted(found)
    finite = {e: value for e in order if (value := found[e]) is not None}
    if not finite:
      raise InputError(f'No learning rate around {base_rate} is finite.')
    # The lowest of equally good rates.
    best = (max if higher_is_better else min)(finite, key=finite.__getitem__)
    edges = {order[0]: best - 1, order[-1]: best + 1}
    new = [edges[best]] if best in edges and abs(best) < _WIDEST else []
  rows = [
    {'learning_rate': base_rate * 2.0**e, 'validation': found[e]} for e in order
  ]
  return base_rate * 2.0**best, rows


def calibrate(name: str, tune: bool, runs: str, jobs: int) -> dict[str, Any]:
  """Calibrate one workload and return the written record.

  Raises:
    InputError: there is no tuned point, or a run diverged.
  """
  workload = build_workload(name)
  tuned = study.ROOT / workload.tuned_search_space
  record_path = targets.path(name)
  known = logs.read_json(str(record_path)) or {}
  tuning = known.get('tuning', [])
  if tune:
    published = json.loads(
      (study.ROOT / 'tuning_search_spaces/nadamw.json').read_text()
    )
    point = published[workload.published_point]

    def measure(rates: list[float]) -> list[float | None]:
      points = [{**point, 'learning_rate': rate} for rate in rates]
      wanted = [training(name, point, SEEDS[0]) for point in points]
      results = execution.run_all(wanted, runs, jobs)
      return [row_of(result)['validation'] for result in results]

    rate, tuning = tune_rate(
      point['learning_rate'], measure, workload.higher_is_better
    )
    _write(tuned, [{**point, 'learning_rate': rate}])
  elif not tuned.exists():
    raise InputError(f'{tuned} is missing. Call again with --tune.')
  wanted = [training(name, tuned_point(name), seed) for seed in SEEDS]
  rows = [row_of(r) for r in execution.run_all(wanted, runs, jobs)]
  record = {
    'workload': name,
    'metric': workload.target_metric_name,
    'validation_target': median_target([row['validation'] for row in rows]),
    'test_target': median_target([row['test'] for row in rows]),
    'rule': RULE,
    'step_hint': workload.step_hint,
    'batch_size': workload.batch_size,
    'seeds': rows,
    'published_point': workload.published_point,
    'tuning': tuning,
    'data_fingerprint': workload.data_fingerprint(),
    'versions': {
      'python': platform.python_version(),
      'torch': torch.__version__,
      'numpy': np.__version__,
    },
    'date': time.strftime('%Y-%m-%d'),
    'command': f'python -m lab.studies calibrate --workloads={name}',
  }
  _write(record_path, record)
  return record


def _write(path: pathlib.Path, content: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  logs.write_json(str(path), content)
  print(f'Wrote {path}', flush=True)


def main(arguments: Sequence[str]) -> None:
  """Calibrate the named workloads, one after another.

  Raises:
    InputError: an argument cannot be used, or a run diverged.
  """
  parser = study.parser_of('calibrate', __doc__)
  parser.add_argument('--workloads', required=True, help='names, or all')
  parser.add_argument(
    '--tune', action='store_true', help='tune the learning rate first'
  )
  parser.add_argument('--jobs', type=int, default=2, help='processes')
  parser.add_argument(
    '--output_dir', default='runs/calibration', help='of finished runs'
  )
  options = parser.parse_args(arguments)
  names = study.values_of(options.workloads, sorted(WORKLOADS), 'workloads')
  jobs = study.jobs_of(options.jobs)
  for name in names:
    record = calibrate(name, options.tune, options.output_dir, jobs)
    print(
      f'{name}: {record["metric"]} target {record["validation_target"]:.6g}, '
      f'test {record["test_target"]:.6g}'
    )
