"""Measure the cost of several averages and of the choice among them.

`auto_sample`: one sample of the default candidates, taken in one pass, against
EMA alone and against four separate EMA averagers.

`probe`: the billed time of `nadamw_auto` beyond a submission with one average,
as a fraction of a run. At every evaluation one batch is drawn and set aside,
and the losses of all candidates on a part of it are computed. A run has 50
evaluations, one every 2 % of the steps. The evaluation of the loss at the start
of a run is left out.
"""

import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import THREADS, Ratio, compare, transformer_parameters
from lab.core.logs import MetricsLogger
from lab.workloads import WORKLOADS, build_workload
from weightavg import AveragingConfig
from weightavg.pytorch import Averager, choosing_step, train_step
from weightavg.pytorch.build_nadamw import NADAMW

ROOT = pathlib.Path(__file__).parent.parent
EVALUATIONS = 50
SAMPLE_REPEATS = 31
WARMUP = 10
# A step that neither logs nor renews a probe.
_STEP = 101
_RNG = (0, 1)


def _samples() -> dict[str, Ratio]:
  weights = [(str(i), p) for i, p in enumerate(transformer_parameters())]

  def averager(scheme: str) -> Averager:
    return Averager.from_config(
      weights,
      AveragingConfig.from_point(
        averaging_scheme=scheme, averaging_every_steps=1
      ),
      budget=1000,
    )

  auto = averager('auto')
  emas = [averager('ema') for _ in range(4)]

  def update_all() -> None:
    for ema in emas:
      ema.update(finite=True)

  return compare(
    lambda: auto.update(finite=True),
    {
      'auto_sample/ema_sample': (
        'one EMA sample; auto has four averages and the raw weights',
        lambda: emas[-1].update(finite=True),
      ),
      'auto_sample/four_ema_samples': (
        'four EMA averagers, one after the other',
        update_all,
      ),
    },
    repeats=SAMPLE_REPEATS,
  )


class _Run:
  """The calls of the benchmark while `nadamw_auto` trains, one by one."""

  def __init__(self, name: str, folder: str) -> None:
    self.workload = build_workload(name)
    # Logging a choice is billed time.
    self.workload.attach_metrics_logger(MetricsLogger(folder))
    space = ROOT / self.workload.tuned_search_space
    (point,) = json.loads(space.read_text())
    self.model, self.model_state = self.workload.init_model_fn(_RNG)
    self.state = choosing_step.init_optimizer_state(
      self.workload, self.model, point, NADAMW
    )
    self.queue = self.workload._build_input_queue(
      _RNG, 'train', '', self.workload.batch_size
    )

  def step(self) -> None:
    """Select data and train one step, which swaps an average out."""
    batch = choosing_step.data_selection(
      self.workload,
      self.queue,
      self.state,
      self.model,
      self.model_state,
      None,
      _STEP,
      _RNG,
    )
    self.state, self.model, self.model_state = choosing_step.update_params(
      self.workload,
      self.model,
      None,
      self.model_state,
      None,
      batch,
      self.workload.loss_type,
      self.state,
      [],
      _STEP,
      _RNG,
    )

  def set_aside(self) -> None:
    """Set a batch aside, as a step does when a probe is due."""
    self.state['probe'].set_aside(next(self.queue))

  def choose(self) -> None:
    """Compare all candidates, choose one and show it."""
    self._prepare_for_eval(choosing_step)

  def show(self) -> None:
    """Show an average, as a submission with a single average does."""
    self._prepare_for_eval(train_step)

  def _prepare_for_eval(self, functions: Any) -> None:
    functions.prepare_for_eval(
      self.workload,
      self.model,
      None,
      self.model_state,
      None,
      self.workload.loss_type,
      self.state,
      [],
      _STEP,
      _RNG,
    )


def _timed(call: Callable[[], object]) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def _probe(name: str, repeats: int) -> Ratio:
  """Time each call in turn, with an untimed step between two of them."""
  torch.set_num_threads(THREADS)
  times: dict[str, list[float]] = {
    key: [] for key in ('step', 'set_aside', 'choose', 'show')
  }
  with tempfile.TemporaryDirectory() as folder:
    run = _Run(name, folder)
    averager = run.state['averager']
    # The first choice needs a sample.
    for _ in range(WARMUP + averager.sampling.every):
      run.step()
    for _ in range(repeats):
      for key in times:
        run.step()
        if key == 'show':
          averager.select(1)  # an average, not the raw weights
        times[key].append(_timed(getattr(run, key)))
  ms = {key: statistics.median(t) * 1e3 for key, t in times.items()}
  cost = ms['set_aside'] + ms['choose'] - ms['show']
  steps = run.workload.step_hint / EVALUATIONS
  return Ratio(
    cost / (steps * ms['step']),
    cost,
    steps * ms['step'],
    f'the {steps:g} steps between two of {EVALUATIONS} evaluations',
    repeats,
  )


def measure(repeats: int = 60) -> dict[str, Ratio]:
  return _samples() | {
    f'probe/{name}': _probe(name, repeats) for name in sorted(WORKLOADS)
  }
