"""A submission that trains a workload, driven as the benchmark drives it."""

import importlib
import json
import pathlib
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.workloads import RNG, Case
from weightavg import spec

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Steps up to the hundredth are logged, which waits for the device twice.
NOT_LOGGED = 101


class Trainer:
  """The functions of a submission with their state.

  Several trainers may share one model, and so what it was compiled to: what a
  step costs does not depend on the weights.

  Args:
    case: workload and batch.
    model: of the case, compiled or wrapped or not.
    submission: name of a folder in submissions/.
    **knobs: beside those of the last point of its search space.
  """

  def __init__(
    self, case: Case, model: nn.Module, submission: str, **knobs: Any
  ) -> None:
    self.case = case
    self.functions = importlib.import_module(
      f'submissions.{submission}.submission'
    )
    path = ROOT / 'tuning_search_spaces' / f'{submission}.json'
    point = json.loads(path.read_text())[-1] | knobs
    point = {key: value for key, value in point.items() if value is not None}
    self.model = model
    self.state = self.functions.init_optimizer_state(
      case.workload, model, case.model_state, point, RNG
    )

  @property
  def optimizer(self) -> torch.optim.Optimizer:
    """The submission's optimizer."""
    return self.state['optimizer']

  @property
  def averager(self) -> Any:
    """The submission's averager."""
    return self.state['averager']

  def _arguments(self) -> dict[str, Any]:
    return {
      'workload': self.case.workload,
      'current_param_container': self.model,
      'current_params_types': None,
      'model_state': self.case.model_state,
      'hyperparameters': None,
      'loss_type': self.case.workload.loss_type,
      'optimizer_state': self.state,
      'eval_results': [],
      'global_step': NOT_LOGGED,
      'rng': RNG,
    }

  def step(self) -> None:
    """One `update_params`."""
    arguments = self._arguments()
    self.state, self.model, self.case.model_state = (
      self.functions.update_params(batch=self.case.batch, **arguments)
    )

  def steps(self, count: int) -> None:
    """Several of them."""
    for _ in range(count):
      self.step()

  def prepare_for_eval(self) -> None:
    """Call `prepare_for_eval` as the benchmark does before an evaluation."""
    self.functions.prepare_for_eval(**self._arguments())

  def logits(self) -> torch.Tensor:
    """Return the logits of the batch as an evaluation computes them."""
    logits, _ = self.case.workload.model_fn(
      params=self.model,
      augmented_and_preprocessed_input_batch=self.case.batch,
      model_state=self.case.model_state,
      mode=spec.ForwardPassMode.EVAL,
      rng=RNG,
      update_batch_norm=False,
      dropout_rate=0.0,
    )
    return logits
