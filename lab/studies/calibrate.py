"""Set a local workload's targets by the benchmark's 75 % rule.

NadamW alone is trained for 0.75 x step_hint steps, on a schedule of that
length, with seeds 0 to 4. A target is the median over seeds of each run's best
metric in the second half. Targets, every seed's values and the fingerprint of
the data go to lab/workloads/<workload>.json.

The baseline's point is the one that `tune --promote` has written to
tuning_search_spaces/local/<workload>.json.
"""

import math
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lab.core import logs
from lab.core.errors import InputError
from lab.studies.parts import execution, study
from lab.studies.parts.averages import Averages
from lab.studies.parts.training import (
  Result,
  Training,
  tuned_path,
  tuned_point,
)
from lab.workloads import WORKLOADS, build_workload, targets

TARGET_FRACTION = 0.75
SEEDS = (0, 1, 2, 3, 4)
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


def calibrate(name: str, runs: str, jobs: int) -> dict[str, Any]:
  """Calibrate one workload and return the written record.

  Raises:
    InputError: there is no tuned point, or a run diverged.
  """
  workload = build_workload(name)
  path = tuned_path(name)
  if not path.exists():
    raise InputError(
      f'{path} is missing. Call python -m lab.studies tune '
      f'--workload={name} --method=nadamw --promote first.'
    )
  wanted = [training(name, tuned_point(name), seed) for seed in SEEDS]
  execution.warn_of_other_code(wanted, runs)
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
    'point': tuned_point(name),
    'data_fingerprint': workload.data_fingerprint(),
    'versions': {
      'python': platform.python_version(),
      'torch': torch.__version__,
      'numpy': np.__version__,
    },
    'date': time.strftime('%Y-%m-%d'),
    'command': f'python -m lab.studies calibrate --workloads={name}',
  }
  logs.write_json(str(targets.path(name)), record)
  print(f'Wrote {targets.path(name)}', flush=True)
  return record


def main(arguments: Sequence[str]) -> None:
  """Calibrate the named workloads, one after another.

  Raises:
    InputError: an argument cannot be used, or a run diverged.
  """
  parser = study.parser_of('calibrate', __doc__)
  parser.add_argument('--workloads', required=True, help='names, or all')
  parser.add_argument('--jobs', type=int, default=2, help='processes')
  parser.add_argument(
    '--output_dir', default='runs/calibration', help='of finished runs'
  )
  options = parser.parse_args(arguments)
  names = study.values_of(options.workloads, sorted(WORKLOADS), 'workloads')
  jobs = study.jobs_of(options.jobs)
  for name in names:
    record = calibrate(name, options.output_dir, jobs)
    print(
      f'{name}: {record["metric"]} target {record["validation_target"]:.6g}, '
      f'test {record["test_target"]:.6g}'
    )
