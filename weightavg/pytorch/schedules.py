"""Learning-rate schedulers for torch's optimizers (`weightavg.learning_rate`).

AlgoPerf's baselines compose the same cosine from torch's LinearLR and
CosineAnnealingLR, which rises again after its last step. Here the last value
holds.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from weightavg.clock_plan import ClockPlan
from weightavg.learning_rate import factor, factor_at


class Schedule(LambdaLR):
  """Multiply each group's learning rate by `factor` at the current step.

  A restored state brings the step and the peak learning rates, as in torch.
  The curve is the constructor's; `load_state_dict` warns if another was saved.

  Args:
    optimizer: its groups' learning rates are the peaks.
    steps: S, length of the schedule.
    warmup_factor: warm-up as a fraction of S, in [0, 1).
    schedule: 'cosine', 'cosine_to_half' or 'constant'.
    warmup_steps: length of the warm-up instead of `warmup_factor`, >= 1.
  """

  def __init__(
    self,
    optimizer: torch.optim.Optimizer,
    steps: int,
    warmup_factor: float = 0.0,
    schedule: str = 'cosine',
    warmup_steps: int | None = None,
  ) -> None:
    self.curve: dict[str, Any] = {
      'steps': steps,
      'warmup_factor': warmup_factor,
      'schedule': schedule,
    }
    if warmup_steps is not None:
      self.curve['warmup_steps'] = warmup_steps
    super().__init__(optimizer, lambda step: factor(step, **self.curve))

  def load_state_dict(self, state_dict: dict[str, Any]) -> None:
    """Restore; warn if the saved run followed another curve."""
    curve = self.curve
    super().load_state_dict(state_dict)
    saved, self.curve = self.curve, curve
    if saved != curve:
      warnings.warn(
        f'The learning rate continues on the schedule {curve}. The saved run '
        f'followed {saved}.',
        stacklevel=2,
      )


def build_scheduler(
  optimizer: torch.optim.Optimizer,
  budget: int,
  warmup_factor: float = 0.0,
  schedule: str = 'cosine',
  schedule_factor: float = 1.0,
  warmup_steps: int | None = None,
) -> Schedule:
  """Build the schedule of a run: S = schedule_factor x budget steps."""
  steps = max(1, round(schedule_factor * budget))
  return Schedule(optimizer, steps, warmup_factor, schedule, warmup_steps)


def build_planned_scheduler(
  optimizer: torch.optim.Optimizer,
  plan: ClockPlan,
  warmup_factor: float = 0.0,
  schedule: str = 'cosine',
  schedule_factor: float = 1.0,
) -> LambdaLR:
  """Build a schedule along the positions of a plan, which may be revised."""

  def at(step: int) -> float:
    position = plan.position(step) / schedule_factor
    return factor_at(position, warmup_factor, schedule)

  return LambdaLR(optimizer, at)


def peak_learning_rates(optimizer: torch.optim.Optimizer) -> list[float]:
  """Return each group's learning rate without its scheduler's factor."""
  return [
    float(group.get('initial_lr', group['lr']))
    for group in optimizer.param_groups
  ]


def warn_of_other_peaks(
  optimizer: torch.optim.Optimizer, constructed: Sequence[float]
) -> None:
  """Warn if loading a state has changed a group's peak learning rate.

  Args:
    optimizer: an optimizer that has just loaded a state, hyperparameters
      included.
    constructed: its `peak_learning_rates` before.
  """
  loaded = peak_learning_rates(optimizer)
  if loaded != list(constructed):
    warnings.warn(
      f'{type(optimizer).__name__} continues with the saved learning rates '
      f"{loaded}, not the constructor's {list(constructed)}. To change them, "
      "set group['lr'], or a scheduler's base_lrs, after loading.",
      stacklevel=3,
    )
