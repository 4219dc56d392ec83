"""The functions that AlgoPerf calls, for submissions that choose an average.

Several averages follow the run; each evaluation sees the one whose loss is
lowest on a probe, examples held out of training. The rules do not let
`data_selection` change the optimizer's state: it hands a new probe over inside
the batch that it returns, and `update_params` puts it aside.
"""

from collections.abc import Iterator
from typing import Any

from weightavg import spec
from weightavg.jax import train_step
from weightavg.jax.choosing_trainer import ChoosingTrainer
from weightavg.jax.probes import Batch
from weightavg.jax.run_state import RunState
from weightavg.jax.trainer import Trainer
from weightavg.optimizers import Optimizer
from weightavg.schemes import Auto
from weightavg.submission_config import SubmissionConfig

# Key of the probe in a batch.
PROBE = 'weightavg_probe'

State = tuple[RunState, ChoosingTrainer]


def init_optimizer_state(
  workload: spec.Workload,
  model_params: Any,
  model_state: Any,
  hyperparameters: Any,
  optimizer: Optimizer,
) -> State:
  """Build everything that trains, and the choice.

  Arguments and errors are those of `train_step.init_optimizer_state`.
  """
  config = SubmissionConfig.from_point(hyperparameters, optimizer, Auto)
  trainer = ChoosingTrainer(
    workload, config, optimizer, hyperparameters is None
  )
  return trainer.init(model_params, model_state), trainer


def data_selection(
  workload: spec.Workload,
  input_queue: Iterator[Batch],
  optimizer_state: State,
  current_param_container: Any,
  model_state: Any,
  hyperparameters: Any,
  global_step: int,
  rng: Any,
) -> Batch:
  """The next batch of the queue, with one more inside when a probe is due."""
  del workload, current_param_container, model_state, hyperparameters, rng
  state, trainer = optimizer_state
  batch = next(input_queue)
  if trainer.is_probe_due(state, global_step):
    batch = {**batch, PROBE: next(input_queue)}
  return batch


def update_params(
  workload: spec.Workload,
  current_param_container: Any,
  current_params_types: Any,
  model_state: Any,
  hyperparameters: Any,
  batch: Batch,
  loss_type: spec.LossType,
  optimizer_state: State,
  eval_results: list[tuple[int, float]],
  global_step: int,
  rng: Any,
  train_state: dict[str, Any] | None = None,
) -> tuple[State, Any, Any]:
  """Put a probe aside if the batch has one, then train on the rest.

  Raises:
    ValueError: at the first probe, if it is too small a batch for the one that
      was asked for, or the workload's loss cannot be computed on it.
  """
  del workload, current_param_container, current_params_types, model_state
  del hyperparameters, loss_type, eval_results
  state, trainer = optimizer_state
  batch = dict(batch)
  fresh = batch.pop(PROBE, None)
  state = trainer.own(state)
  trainer.fit(state, batch)
  if fresh is not None:
    state = trainer.set_aside(state, fresh, rng)
  billed = (train_state or {}).get('accumulated_submission_time', 0.0)
  state = trainer.step(state, batch, rng, global_step, billed)
  return (state, trainer), state.train.params, state.train.model_state


def prepare_for_eval(
  workload: spec.Workload,
  current_param_container: Any,
  current_params_types: Any,
  model_state: Any,
  hyperparameters: Any,
  loss_type: spec.LossType,
  optimizer_state: State,
  eval_results: list[tuple[int, float]],
  global_step: int,
  rng: Any,
) -> tuple[tuple[Any, Trainer], Any, Any]:
  """Choose an average by the probe, and return it."""
  state, trainer = optimizer_state
  state = trainer.choose(trainer.own(state), rng, global_step)
  return prepare_for_checkpoint(
    workload,
    current_param_container,
    current_params_types,
    model_state,
    hyperparameters,
    loss_type,
    (state, trainer),
    eval_results,
    global_step,
    rng,
  )


# Between two evaluations: a choice there would be one more than an undisturbed
# run makes.
prepare_for_checkpoint = train_step.prepare_for_eval
