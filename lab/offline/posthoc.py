"""Reconstruct an EMA of any length from snapshots of two averages.

Karras et al. 2024 (arXiv 2312.02696), section 3. Training keeps two polynomial
averages of different powers and saves snapshots of them. Each snapshot is a
known weighting of the samples so far. A combination of the snapshots, found by
least squares, approximates the weighting of any other average.

A polynomial average with power g gives sample j of k the weight

  w_j = (g + 1) Gamma(k) Gamma(g + j) / (Gamma(j) Gamma(g + k + 1))

whose standard deviation over j, divided by k, tends to

  sigma_rel = sqrt(g + 1) / ((g + 2) sqrt(g + 3))
"""

import dataclasses
import itertools
import json
import math
import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from lab.core.errors import InputError
from lab.offline import writers
from lab.offline.plans import AveragePlan, Weighted, described
from lab.offline.series import Series
from weightavg import AveragingConfig
from weightavg.pytorch import Averager
from weightavg.pytorch.models import clean_name, unwrap
from weightavg.schemes import Ema, Polynomial, Recursive

# Relative widths of the two averages, those of the paper.
SIGMAS = (0.05, 0.10)
# Samples whose weights are held at once.
_BLOCK = 1 << 14
# Relative size of the directions that the solution leaves out, since they would
# amplify the rounding errors of the snapshots.
_RCOND = 1e-7


def power_of_sigma(sigma_rel: float) -> float:
  """Return the power of the polynomial average of a relative width.

  >>> round(power_of_sigma(0.05), 2), round(power_of_sigma(0.1), 2)
  (16.97, 6.94)
  """
  if not 0 < sigma_rel < 12**-0.5:
    raise InputError(f'Invalid sigma_rel={sigma_rel}. Must be in (0, 0.288].')
  t = sigma_rel**-2
  # The formula above, squared: a cubic in g.
  roots = np.roots([1.0, 7.0, 16.0 - t, 12.0 - t])
  return float(roots.real[np.abs(roots.imag) < 1e-9].max())


class Accumulators:
  """Two polynomial averages of a model, and snapshots of them.

  Args:
    model: the trained model, wrapped or not.
    powers: the two powers; by default those of the paper's widths.
    every: steps between two samples.

  >>> model = nn.Linear(1, 1)
  >>> accumulators = Accumulators(model)
  >>> accumulators.update()  # after each optimizer step
  >>> accumulators.save('.')[0]  # at regular intervals
  './posthoc_0_step_1.safetensors'
  """

  def __init__(
    self, model: nn.Module, powers: Sequence[float] = (), every: int = 1
  ) -> None:
    self._model = unwrap(model)
    self._powers = tuple(powers) or tuple(map(power_of_sigma, SIGMAS))
    self._averagers = [
      Averager.from_config(
        model,
        AveragingConfig.from_point(
          averaging_scheme='polynomial',
          averaging_power=power,
          averaging_every_steps=every,
        ),
        budget=every,
      )
      for power in self._powers
    ]

  def update(self) -> None:
    """Count an optimizer step."""
    first, *others = self._averagers
    skipped = first.skipped
    first.update()
    for averager in others:
      # The first averager has checked all weights for finite values.
      averager.update(finite=first.skipped == skipped)

  def save(self, directory: str) -> list[str]:
    """Write a snapshot of each average; none before the first sample."""
    paths = []
    for i, averager in enumerate(self._averagers):
      if not averager.samples:
        continue
      name = f'posthoc_{i}_step_{averager.step}.safetensors'
      path = os.path.join(directory, name)
      recipe = {
        'scheme': 'polynomial',
        'power': self._powers[i],
        'samples': averager.samples,
        'step': averager.step,
      }
      with averager.evaluating():
        state = self._model.state_dict()
        writers.save(
          path, [(clean_name(n), t) for n, t in state.items()], recipe
        )
      paths.append(path)
    return paths

  def state_dict(self) -> dict[str, Any]:
    """Return everything that is needed to continue."""
    return {'averagers': [a.state_dict() for a in self._averagers]}

  def load_state_dict(self, state_dict: dict[str, Any]) -> None:
    """Load a saved state."""
    saved = state_dict['averagers']
    for averager, state in zip(self._averagers, saved, strict=True):
      averager.load_state_dict(state)


@dataclasses.dataclass(frozen=True, order=True)
class Snapshot:
  """A file with the polynomial average of the samples 1..samples."""

  step: int
  samples: int
  power: float
  path: str


def snapshot(path: str) -> Snapshot:
  """Read the metadata of a snapshot.

  Raises:
    InputError: the file is not a snapshot.
  """
  try:
    with safe_open(path, 'pt') as file:
      recipe = json.loads((file.metadata() or {})[writers.RECIPE])
    step, samples = operator.index(recipe['step']), recipe['samples']
    power = float(recipe['power'])
    if step < 1 or operator.index(samples) < 1 or not 0 <= power < math.inf:
      raise ValueError('out of range')
    return Snapshot(step, samples, power, path)
  except Exception as error:
    raise InputError(
      f'Cannot use {path}: not a snapshot of a post-hoc average '
      f'({type(error).__name__}).'
    ) from error


def weights(scheme: Recursive, count: int, begin: int, end: int) -> np.ndarray:
  """Return the weights of samples begin+1..end in an average of 1..count."""
  j = np.arange(begin + 1, end + 1, dtype=np.float64)
  if isinstance(scheme, Ema):
    decay = scheme.decay
    assert decay is not None
    values = (1 - decay) * decay ** np.maximum(count - j, 0)
    values /= 1 - decay**count
  else:
    assert isinstance(scheme, Polynomial)
    g = scheme.power
    logs = np.log(g + 1) + _lgamma(count) - _lgamma(g + count + 1)
    values = np.exp(logs + _lgamma(g + j) - _lgamma(j))
  return np.where(j <= count, values, 0.0)


def _lgamma(x: Any) -> np.ndarray:
  return torch.lgamma(torch.as_tensor(x, dtype=torch.float64)).numpy()


def solve(
  known: Sequence[tuple[Recursive, int]], wanted: tuple[Recursive, int]
) -> tuple[list[float], float]:
  """Approximate a weighting by a combination of known ones (least squares).

  The coefficients sum to one, like the weights of each average.

  Args:
    known: scheme and number of samples of each snapshot.
    wanted: scheme and number of samples of the average to approximate.

  Returns:
    A coefficient for each snapshot, and the relative error: the norm of the
    difference of the weightings divided by the norm of the wanted one.
  """
  samples = max(count for _, count in [*known, wanted])
  columns = len(known)
  triangle = np.zeros((0, columns))
  norm = 0.0
  for begin in range(0, samples, _BLOCK):
    end = min(samples, begin + _BLOCK)
    rows = np.stack(
      [weights(s, k, begin, end) for s, k in [*known, wanted]], axis=1
    )
    norm += float((rows[:, -1] ** 2).sum())
    # Substituting c_n = 1 - sum of the others removes the constraint: the
    # unknowns multiply differences to the last snapshot.
    last = rows[:, columns - 1]
    system = np.delete(rows, columns - 1, axis=1) - last[:, None]
    # The triangle of the QR decomposition accumulates over the blocks.
    stacked = np.concatenate([triangle, system])
    triangle = np.asarray(np.linalg.qr(stacked, mode='r'))
  matrix, target = triangle[:, :-1], triangle[:, -1]
  # Without scaling, columns of small norm would fall below the threshold.
  scale = np.linalg.norm(matrix, axis=0)
  scale[scale == 0] = 1.0
  solution = np.linalg.lstsq(matrix / scale, target, rcond=_RCOND)[0] / scale
  error = float(np.linalg.norm(matrix @ solution - target)) / norm**0.5
  return [*solution.tolist(), 1.0 - float(solution.sum())], error


def plan(
  snapshots: Sequence[Snapshot], wanted: Recursive, at: int
) -> AveragePlan:
  """AveragePlan the combination of snapshots that approximates an average best.

  Args:
    snapshots: all snapshots, sorted.
    wanted: scheme of the average, over the samples up to the step `at`.
    at: step of the last snapshot to use.

  Raises:
    InputError: the step has no snapshot.
  """
  used = [s for s in snapshots if s.step <= at]
  if not used or used[-1].step != at:
    raise InputError(
      f'Invalid at={at}. Must be the step of a snapshot: '
      f'{", ".join(str(n) for n in sorted({s.step for s in snapshots})[-5:])}.'
    )
  known: list[tuple[Recursive, int]] = [
    (Polynomial(s.power), s.samples) for s in used
  ]
  values, error = solve(known, (wanted, used[-1].samples))
  recipe = {
    **described(wanted),
    'scheme': 'posthoc',
    'wanted': wanted.name,
    'step': at,
    'samples': used[-1].samples,
    'relative_error_of_weights': error,
  }
  return AveragePlan(tuple(range(len(used))), Weighted(tuple(values)), recipe)


def find(paths: Sequence[str]) -> tuple[Series, list[Snapshot]]:
  """Sort snapshots and return them also as a series of checkpoints.

  Raises:
    InputError: a file is not a snapshot, or two have the same power and step.
  """
  snapshots = sorted(map(snapshot, paths))
  for a, b in itertools.pairwise(snapshots):
    if (a.step, a.power) == (b.step, b.power):
      raise InputError(f'Two snapshots of step {a.step}: {a.path}, {b.path}.')
  series = Series(
    tuple(s.path for s in snapshots), tuple(s.step for s in snapshots)
  )
  return series, snapshots
