"""Measure the cost of averaging in a training step of the local workloads."""

import itertools
import json
import pathlib
import statistics
import time
from typing import Any

import torch

from benchmarks.measure import THREADS, Ratio
from lab.workloads import WORKLOADS, build_workload
from weightavg import schemes
from weightavg.pytorch import choosing_step, train_step
from weightavg.pytorch.build_nadamw import NADAMW

ROOT = pathlib.Path(__file__).parent.parent
SCHEMES = ('lawa', 'ema', 'polynomial', 'auto')
# Complete cycles of the default cadence: samples count at their own rate.
CYCLES = 3


def _trainer(name: str, scheme: str, every_step: bool) -> tuple[Any, int]:
  workload = build_workload(name)
  (point,) = json.loads((ROOT / workload.tuned_search_space).read_text())
  if every_step:
    point |= {'averaging_every_steps': 1}
  model, model_state = workload.init_model_fn((0, 1))
  # For auto: the cost of every step. auto.py measures its probes.
  functions: Any = choosing_step if scheme == 'auto' else train_step
  state = functions.init_optimizer_state(
    workload,
    model,
    point,
    NADAMW,
    *(() if scheme == 'auto' else (schemes.SCHEMES[scheme],)),
  )
  queue = workload._build_input_queue((0, 1), 'train', '', workload.batch_size)
  batches = itertools.cycle([next(queue) for _ in range(8)])

  def step() -> None:
    nonlocal state, model, model_state
    state, model, model_state = functions.update_params(
      workload,
      model,
      None,
      model_state,
      None,
      next(batches),
      workload.loss_type,
      state,
      [],
      101,  # not a step that is logged
      (0, 1),
    )

  return step, state['averager'].sampling.every


def _compare(name: str, scheme: str, every_step: bool, repeats: int) -> Ratio:
  """Time complete cycles of both trainers, alternating step by step."""
  torch.set_num_threads(THREADS)
  ours, every = _trainer(name, scheme, every_step)
  other, _ = _trainer(name, 'none', every_step=False)
  rounds = max(repeats, CYCLES * every)
  rounds -= rounds % every
  times: tuple[list[float], list[float]] = ([], [])
  for _ in range(10):
    ours(), other()
  for round_ in range(rounds):
    pair = ((0, ours), (1, other))
    # The second of a pair finds warmer caches, so the order alternates.
    for index, call in pair if round_ % 2 else reversed(pair):
      start = time.perf_counter()
      call()
      times[index].append(time.perf_counter() - start)
  # A median over all steps would hide the steps that sample.
  plain = statistics.median(times[1])
  return Ratio(
    _typical(times[0], every) / plain,
    _typical(times[0], every) * 1e3,
    plain * 1e3,
    f'the same step without averaging (a sample every {every} steps)',
    rounds,
  )


def _typical(times: list[float], every: int) -> float:
  """Return the mean over a cycle of the medians of its two kinds of steps."""
  # Ten steps of warm-up came before: step 11 is the first that is timed.
  sampled = [t for i, t in enumerate(times, 11) if i % every == 0]
  others = [t for i, t in enumerate(times, 11) if i % every]
  share = 1 / every
  if not others:
    return statistics.median(sampled)
  return share * statistics.median(sampled) + (1 - share) * statistics.median(
    others
  )


def measure(repeats: int = 60) -> dict[str, Ratio]:
  results = {}
  for name in sorted(WORKLOADS):
    for scheme in SCHEMES:
      results[f'train_step/{name}/nadamw_{scheme}'] = _compare(
        name, scheme, every_step=False, repeats=repeats
      )
    results[f'train_step_every_step/{name}/nadamw_ema'] = _compare(
      name, 'ema', every_step=True, repeats=repeats
    )
  return results
