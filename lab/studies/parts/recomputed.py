"""Measure what a submission shows with recomputed statistics of BatchNorm."""

from typing import Any, ClassVar

from lab.offline import batch_norm
from lab.run.trial import TrialRun
from lab.studies.parts.shown import Shown
from lab.workloads import build_workload

BATCHES = 16
# Salt of the training batches that statistics are recomputed on.
_SALT = 20151506


class Recomputed(Shown):
  """Measures the shown weights with statistics recomputed from batches.

  Training goes on with the statistics that it has collected.
  """

  rule: ClassVar[tuple[str, ...]] = (Shown.__module__, batch_norm.__name__)

  def at_start(self, run: TrialRun) -> None:
    """Open a stream of further training batches."""
    trial = run.trial
    self._queue = build_workload(trial.workload.name)._build_input_queue(
      (trial.rng_seed, _SALT), 'train', '', trial.batch_size
    )

  def instead_of_evaluation(self, run: TrialRun, rng: Any) -> bool:
    """Recompute the statistics, measure, and put the old ones back."""
    step = run.state.global_step
    if step < self._evaluated_from * run.trial.budget:
      return True
    model = run.state.model_params
    kept = [buffer.clone() for buffer in model.buffers()]
    batch_norm.recompute(
      run.trial.workload,
      model,
      run.state.model_state,
      self._queue,
      BATCHES,
      rng,
    )
    super().instead_of_evaluation(run, rng)
    for buffer, own in zip(model.buffers(), kept, strict=True):
      buffer.copy_(own)
    return True
