"""The functions that AlgoPerf calls, shared by all submissions in JAX.

Trained are the raw weights (y where training takes place at an average), which
are part of the optimizer's state; between
`prepare_for_eval` and the next `update_params` the benchmark holds their
average, also in the checkpoint that it writes then. The raw weights come back
from the state.
"""

from collections.abc import Iterator
from typing import Any

from weightavg import spec
from weightavg.jax.primal_trainer import PrimalTrainer
from weightavg.jax.trainer import Trainer
from weightavg.optimizers import Optimizer
from weightavg.schemes import Scheme
from weightavg.submission_config import SubmissionConfig


def init_optimizer_state(
  workload: spec.Workload,
  model_params: Any,
  model_state: Any,
  hyperparameters: Any,
  optimizer: Optimizer,
  scheme: type[Scheme],
) -> tuple[Any, Trainer]:
  """Build everything that trains.

  Args:
    workload: gives the step hint and, for epochs, the number of examples.
    model_params: tree of parameters; copied, since a step donates its buffers.
    model_state: tree of running statistics, or None; copied.
    hyperparameters: a point of the search space; None under self-tuning.
    optimizer: handed over so that a submission carries no other than its own.
    scheme: class of the average that evaluation sees.

  Returns:
    The state, a tree of arrays that a checkpoint saves, and the compiled
    functions of the run, which it does not.

  Raises:
    ValueError: for a point that is not allowed.
  """
  config = SubmissionConfig.from_point(hyperparameters, optimizer, scheme)
  kind = PrimalTrainer if config.averaging.interpolation else Trainer
  trainer = kind(workload, config, optimizer, hyperparameters is None)
  return trainer.init(model_params, model_state), trainer


def update_params(
  workload: spec.Workload,
  current_param_container: Any,
  current_params_types: Any,
  model_state: Any,
  hyperparameters: Any,
  batch: dict[str, Any],
  loss_type: spec.LossType,
  optimizer_state: tuple[Any, Trainer],
  eval_results: list[tuple[int, float]],
  global_step: int,
  rng: Any,
  train_state: dict[str, Any] | None = None,
) -> tuple[tuple[Any, Trainer], Any, Any]:
  """One training step on the raw weights, sampled by the averages."""
  del workload, current_param_container, current_params_types, model_state
  del hyperparameters, loss_type, eval_results
  state, trainer = optimizer_state
  billed = (train_state or {}).get('accumulated_submission_time', 0.0)
  state = trainer.step(trainer.own(state), batch, rng, global_step, billed)
  return (state, trainer), state.train.params, state.train.model_state


def prepare_for_eval(
  workload: spec.Workload,
  current_param_container: Any,
  current_params_types: Any,
  model_state: Any,
  hyperparameters: Any,
  loss_type: spec.LossType,
  optimizer_state: tuple[Any, Trainer],
  eval_results: list[tuple[int, float]],
  global_step: int,
  rng: Any,
) -> tuple[tuple[Any, Trainer], Any, Any]:
  """Return the average in place of parameters and running statistics."""
  del workload, current_param_container, current_params_types, model_state
  del hyperparameters, loss_type, eval_results, global_step, rng
  state, trainer = optimizer_state
  state = trainer.own(state)
  params, statistics = trainer.shown(state, trainer.chosen(state))
  state = trainer.pause(state)
  return (state, trainer), params, statistics


def data_selection(
  workload: spec.Workload,
  input_queue: Iterator[dict[str, Any]],
  optimizer_state: tuple[Any, Trainer],
  current_param_container: Any,
  model_state: Any,
  hyperparameters: Any,
  global_step: int,
  rng: Any,
) -> dict[str, Any]:
  """The next batch of the queue."""
  del workload, optimizer_state, current_param_container, model_state
  del hyperparameters, global_step, rng
  return next(input_queue)
