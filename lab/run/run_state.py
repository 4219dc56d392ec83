"""The state of a trial that changes while it runs."""

import dataclasses
from typing import Any


def new_train_state() -> dict[str, Any]:
  """The benchmark's bookkeeping, as submissions may read it.

  'batches_drawn' is ours: where the input goes on after a resumption.
  """
  return {
    'validation_goal_reached': False,
    'test_goal_reached': False,
    'is_time_remaining': True,
    'last_eval_time': 0,
    'training_complete': False,
    'accumulated_submission_time': 0,
    'accumulated_eval_time': 0,
    'accumulated_logging_time': 0,
    'last_step_end_time': None,
    'batches_drawn': 0,
  }


@dataclasses.dataclass
class RunState:
  """State of one trial; what a checkpoint holds and nothing more.

  Args:
    optimizer_state: What `init_optimizer_state` returned; in JAX a pair.
    model_params: The module that is trained, wrapped or not; in JAX a tree.
    model_state: The workload's auxiliary state.
    train_state: Goals, flags and accumulated times in seconds.
    eval_results: Pairs of a step and its metrics.
    global_step: Updates made so far.
    preemption_count: How often the trial was resumed.
  """

  optimizer_state: Any
  model_params: Any
  model_state: Any
  train_state: dict[str, Any] = dataclasses.field(
    default_factory=new_train_state
  )
  eval_results: list[tuple[int, dict[str, Any]]] = dataclasses.field(
    default_factory=list
  )
  global_step: int = 0
  preemption_count: int = 0

  @property
  def goals_reached(self) -> bool:
    """True once both targets have been reached."""
    return bool(
      self.train_state['validation_goal_reached']
      and self.train_state['test_goal_reached']
    )
