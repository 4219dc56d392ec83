"""Measure the cost of averaging in a training step of the twins in JAX.

Times are of complete cycles of the default cadence, both submissions step by
step in turn. Bytes are the compiler's: arguments and temporaries of the step.
"""

import importlib
import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.measure import Ratio
from lab.core import search_space
from lab.workloads.jax import WORKLOADS, build_workload

ROOT = pathlib.Path(__file__).parent.parent
BASELINE = 'nadamw_jax'
SUBMISSIONS = (
  'nadamw_ema_jax',
  'nadamw_lawa_jax',
  'nadamw_auto_jax',
  'nadamw_primal_jax',
  'nadamw_schedule_free_jax',
)
CYCLES = 3
_RNG = np.array([0, 1])


class _Run:
  """One submission on one twin."""

  def __init__(self, workload_name: str, submission: str) -> None:
    self._workload = build_workload(workload_name)
    self._submission = importlib.import_module(
      f'submissions.{submission}.submission'
    )
    path = ROOT / self._workload.tuned_search_space
    (point,) = json.loads(path.read_text())
    if 'primal' in submission or 'schedule_free' in submission:
      point |= {'one_minus_beta1': 1.0}
    self._point = search_space.as_hyperparameters(point)
    params, model_state = self._workload.init_model_fn(_RNG)
    self._state = self._submission.init_optimizer_state(
      self._workload, params, model_state, self._point, _RNG
    )
    queue = self._workload._build_input_queue(
      _RNG, 'train', '', self._workload.batch_size
    )
    self._batches = itertools.cycle([next(queue) for _ in range(8)])

  @property
  def every(self) -> int:
    """Steps between two samples."""
    return int(self._state[1].pacer.at(0).every)

  def step(self) -> None:
    """Make one step, and wait for it."""
    self._state, params, _ = self._submission.update_params(
      self._workload,
      None,
      None,
      None,
      self._point,
      next(self._batches),
      self._workload.loss_type,
      self._state,
      [],
      101,  # not a step that is logged
      _RNG,
    )
    jax.block_until_ready(params)

  def nbytes(self) -> int:
    """Bytes of arguments and temporaries of the compiled step."""
    state, trainer = self._state
    lowered = trainer.lower(state, next(self._batches), _RNG)
    memory = lowered.compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def _compare(name: str, submission: str, repeats: int) -> dict[str, Ratio]:
  ours, other = _Run(name, submission), _Run(name, BASELINE)
  every = ours.every
  rounds = max(repeats, CYCLES * every)
  rounds -= rounds % every
  times: tuple[list[float], list[float]] = ([], [])
  for _ in range(10):
    ours.step()
    other.step()
  calls: tuple[tuple[int, Callable[[], None]], ...] = (
    (0, ours.step),
    (1, other.step),
  )
  for round_ in range(rounds):
    # The second of a pair finds warmer caches, so the order alternates.
    for index, call in calls if round_ % 2 else reversed(calls):
      start = time.perf_counter()
      call()
      times[index].append(time.perf_counter() - start)
  own, plain = (_typical(measured, every) * 1e3 for measured in times)
  against = f'{BASELINE} (a sample every {every} steps)'
  key = f'{name}/{submission}'
  return {
    f'jax_train_step/{key}': Ratio(own / plain, own, plain, against, rounds),
    f'jax_step_bytes/{key}': Ratio(
      ours.nbytes() / other.nbytes(), None, None, against, 1
    ),
  }


def _typical(times: list[float], every: int) -> float:
  """Mean of a cycle: a median over all steps would hide those that sample."""
  cycles = [times[i : i + every] for i in range(0, len(times), every)]
  # Position by position, over the cycles.
  positions = zip(*cycles, strict=True)
  return statistics.fmean(map(statistics.median, positions))


def measure(repeats: int = 60) -> dict[str, Ratio]:
  results: dict[str, Any] = {}
  for name, submission in itertools.product(WORKLOADS, SUBMISSIONS):
    results |= _compare(name, submission, repeats)
  return results
