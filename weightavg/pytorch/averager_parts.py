"""The parts of an averager, and what all of its methods share."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from absl import logging
from torch import Tensor

from weightavg.pytorch import finite
from weightavg.pytorch.choice import Choice
from weightavg.pytorch.device_placement import DevicePlacement
from weightavg.pytorch.primal import PrimalPlacement
from weightavg.pytorch.swap import Swap
from weightavg.pytorch.weights import Weights
from weightavg.sampling import Sampling
from weightavg.schemes import Scheme

_Method = TypeVar('_Method', bound=Callable[..., Any])


def outside_autograd(method: _Method) -> _Method:
  """Run without gradients; tensors made inside outlive inference mode."""
  return torch.inference_mode(False)(torch.no_grad()(method))


class AveragerParts:
  """The parts of an averager, which `Averager` builds.

  Attributes:
    scheme: the average, with its length in samples.
    sampling: which steps are sampled.
    interpolation: mu; 0 where training does not take place at the average.
    placement: holds the average; None where evaluation sees the raw weights.
    choice: which of several averages evaluation sees.
    step: number of calls of `update`.
  """

  scheme: Scheme
  sampling: Sampling
  interpolation: float
  placement: DevicePlacement | PrimalPlacement | None
  choice: Choice
  step: int
  _weights: Weights
  _swap: Swap
  # The placement of an interpolation, and the steps between two refreshes.
  _primal: PrimalPlacement | None
  _refresh_every: int | None
  # Whether running statistics have been refreshed, as far as is known.
  _is_refreshed: bool
  _collective: bool | dist.ProcessGroup
  # The settings in which a loaded state must agree.
  _recipe: dict[str, Any]
  _skipped: int
  # The look at the last sample, until its result is read, and its step.
  _look: tuple[finite.Look, int] | None

  @property
  def skipped(self) -> int:
    """Number of samples that were not finite and did not enter."""
    self._settle()
    return self._skipped

  @property
  def samples(self) -> int:
    """Number of samples that have entered the average."""
    self._settle()
    return 0 if self.placement is None else self.placement.count

  @property
  def swapped(self) -> bool:
    """True while the model holds the average."""
    return self._swap.raw is not None

  def named_weights(self) -> dict[str, Tensor]:
    """Parameters and running statistics by their names in the state.

    Raises:
      RuntimeError: the model's parameters are no longer those that are
        averaged.
    """
    self._weights.follow()
    return dict(zip(self._weights.names, self._weights.tensors, strict=True))

  def _settle(self) -> None:
    """Read what the look at the last sample found."""
    if self._look is None:
      return
    (result, step), self._look = self._look, None
    if result.must_skip():
      assert self.placement is not None
      self.placement.retract()
      self._skip(step)

  def _skip(self, step: int) -> None:
    self._skipped += 1
    logging.warning(
      'Step %d: the weights are not finite and did not enter the average '
      '(%d samples skipped so far).',
      step,
      self._skipped,
    )

  def _refuse_in_step(self, action: str) -> None:
    if self._primal is not None and self._primal.in_step:
      raise RuntimeError(
        f'The model holds z. Call update() before {action}, after the step of '
        'the optimizer.'
      )

  def _refuse_shown(self, action: str) -> None:
    if self.swapped:
      raise RuntimeError(
        f'The model holds the average. Call swap_out() before {action}.'
      )
