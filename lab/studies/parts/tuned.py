"""Averages that follow a search, and the points that searches have found."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from lab.core import logs
from lab.studies.parts import tables
from lab.studies.parts.methods import METHODS, REGULARIZERS
from lab.studies.parts.shown import SHOWN
from lab.studies.parts.training import ROOT, tuned_path, tuned_point
from lab.workloads import build_workload
from weightavg.pytorch import models

# Horizon to cadence, both fractions of T: at most twenty samples each; 1 % as
# submissions have it.
HORIZONS = {
  0.005: 0.001,
  0.01: 0.002,
  0.02: 0.002,
  0.03: 0.003,
  0.05: 0.005,
  0.1: 0.005,
  0.2: 0.01,
}
CANDIDATES: dict[str, dict[str, Any]] = {
  'raw': {'averaging_scheme': 'none'},
  **{
    f'{scheme} {tables.percent(horizon)}': {
      'averaging_scheme': scheme,
      'averaging_horizon': horizon,
      'averaging_every': every,
    }
    for scheme in ('lawa', 'ema')
    for horizon, every in HORIZONS.items()
  },
  **{
    f'polynomial {power:g}': {
      'averaging_scheme': 'polynomial',
      'averaging_power': power,
    }
    for power in (4.0, 9.0, 19.0)
  },
}


def kind_of(candidate: str) -> str:
  """Return the kind of an average from its name.

  >>> kind_of('ema 1 %')
  'ema'
  """
  return candidate.split()[0]


KINDS = tuple(dict.fromkeys(map(kind_of, CANDIDATES)))
# Appended to the name of an average that leaves running statistics alone.
CURRENT = 'current'


def candidates_of(workload: str) -> dict[str, dict[str, Any]]:
  """Return the averages that follow a workload's runs.

  Where the model has running statistics, LAWA and EMA follow a second time
  with those of the live model.
  """
  model, _ = build_workload(workload).init_model_fn((0, 0))
  found = dict(CANDIDATES)
  if any(models.running_statistics(model)):
    found |= {
      f'{name} {CURRENT}': fields | {'averaging_batch_norm': CURRENT}
      for name, fields in CANDIDATES.items()
      if kind_of(name) in ('lawa', 'ema')
    }
  return found


def incumbent(
  workload: str, method: str, names: Iterable[str]
) -> dict[str, Any] | None:
  """Return the method's tuned point in the terms of a search.

  Args:
    workload: name of a local workload.
    method: key of METHODS.
    names: its searched hyperparameters.

  Returns:
    The point; None where there is none yet, or where it has no value for a
    hyperparameter that is not a regularizer.
  """
  if not tuned_path(workload).exists():
    return None
  point = METHODS[method].searched(tuned_point(workload, method))
  point = dict.fromkeys(REGULARIZERS, 0.0) | point
  if not set(names) <= set(point):
    return None
  return {name: point[name] for name in names}


def candidates(method: str) -> dict[str, dict[str, Any]]:
  """Return the averages that follow a method's trials.

  A submission that shows an average of its own has that one candidate: without
  averaging, a candidate measures the weights that evaluation sees.
  """
  if METHODS[method].shows_average:
    return {SHOWN: CANDIDATES['raw']}
  return CANDIDATES


def result_of(method: str) -> str:
  """Return the candidate whose winning point is the method's tuned point."""
  return next(iter(candidates(method)))


def folder(workload: str, method: str) -> pathlib.Path:
  """Return the folder of a search, with its runs and its committed files."""
  return ROOT / 'results' / 'tuning' / f'{workload}_{method}'


def winners(workload: str, method: str) -> dict[str, dict[str, Any]]:
  """Return average, point and values by kind; empty before the search."""
  path = folder(workload, method) / 'search.json'
  record = logs.read_json(str(path)) or {}
  return record.get('winners', {})


def kinds_by_point(
  workload: str, method: str
) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
  """Return the points to run, each with the kinds that it was best for.

  The first one is the method's tuned point.
  """
  result = result_of(method)
  points = {result: tuned_point(workload, method)} | {
    kind: METHODS[method].point(winner['point'])
    for kind, winner in winners(workload, method).items()
    if kind != result
  }
  found: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {}
  for kind, point in points.items():
    key = json.dumps(point, sort_keys=True)
    _, kinds = found.get(key, (point, ()))
    found[key] = (point, (*kinds, kind))
  return list(found.values())
