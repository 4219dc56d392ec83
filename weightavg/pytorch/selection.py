"""The rule by which one of several averages is chosen, and its statistics.

All candidates are evaluated on the same examples, so what counts is the
difference of their losses example by example, which is far less noisy than the
losses. With l_ij the loss of candidate i on example j (summed over its
elements), w_j the weight of the example, p the previous choice and N the number
of valid elements, weighted likewise:

  L_i  = sum_j w_j l_ij / N
  d_ij = l_pj - l_ij
  SE_i = sqrt(V_i sum_j w_j^2) / N,   V_i the variance of the d_ij

The choice goes to the candidate of lowest loss (the first of equal ones) among
those with L_p - L_i > SE_i; if there is none, p stays. A candidate whose loss
is not finite is out; if p is out, or there is none yet, the lowest of all is
chosen; if all are out, nothing is. With a single example there is no SE, and p
stays.

Examples of this evaluation's probe weigh 1, those of the k-th probe before it
memory^k.
"""

import dataclasses
import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from weightavg.pytorch.distributed import world_size


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Sums over the examples of all ranks.

  Args:
    losses: [candidates], sum_j w_j l_ij.
    squares: [candidates, candidates], sum_j w_j (l_ij - l_kj)^2.
    counts: sum_j w_j, sum_j w_j^2 and N.
  """

  losses: Tensor
  squares: Tensor
  counts: Tensor

  @property
  def means(self) -> list[float]:
    """L_i."""
    return (self.losses / self.counts[2].clamp(min=1.0)).tolist()

  @property
  def is_finite(self) -> bool:
    """True if all candidates have a finite loss."""
    return bool(self.losses.isfinite().all())


def compare(losses: Tensor, elements: Tensor) -> Comparison:
  """Reduce this rank's losses, and all ranks'; a collective if there are more.

  Args:
    losses: [candidates, examples], any floating dtype.
    elements: number of valid elements of this rank's examples, a scalar.
  """
  # Differences of nearly equal losses, and their squares: in float64.
  losses = losses.double()
  number, examples = losses.shape
  squares = (losses[:, None] - losses).square().sum(2)
  counts = [losses.new_tensor([examples, examples]), elements.double().view(1)]
  packed = torch.cat([losses.sum(1), squares.flatten(), *counts])
  if world_size() > 1:
    dist.all_reduce(packed)
  packed = packed.cpu()
  return Comparison(
    packed[:number],
    packed[number : number * (number + 1)].view(number, number),
    packed[-3:],
  )


def standard_error(comparison: Comparison, one: int, other: int) -> float:
  """SE of the mean difference between two candidates.

  Infinite with fewer than two examples.
  """
  weight, weight_of_squares, elements = comparison.counts.tolist()
  # As many examples of equal weight would have the same error.
  equivalent = weight * weight / max(weight_of_squares, 1.0)
  if equivalent <= 1.0:
    return math.inf
  gain = (comparison.losses[one] - comparison.losses[other]).item() / weight
  square = comparison.squares[one, other].item() / weight
  # Rounding may leave a constant difference with a variance below zero.
  variance = max(0.0, square - gain * gain) * equivalent / (equivalent - 1.0)
  return math.sqrt(variance * weight_of_squares) / max(elements, 1.0)


def choose(comparison: Comparison, previous: int) -> int | None:
  """The candidate to be shown; None if none has a finite loss.

  >>> losses = torch.tensor([[1., 1., 1., 1.], [1., 1., 1., 0.]])
  >>> tie = compare(losses, torch.tensor(4))
  >>> choose(tie, previous=0)  # gain 1/4, standard error 1/4
  0
  >>> choose(tie, previous=-1)
  1
  """
  means = comparison.means
  candidates = [i for i, mean in enumerate(means) if math.isfinite(mean)]
  if previous in candidates:
    candidates = [
      i
      for i in candidates
      if means[previous] - means[i] > standard_error(comparison, previous, i)
    ] or [previous]
  return min(candidates, key=lambda i: means[i], default=None)


class Selector:
  """Chooses at each evaluation, with what it knows from earlier probes.

  A loss that is not finite makes it forget them.

  Args:
    memory: weight of the last probe's examples, in [0, 1).
  """

  def __init__(self, memory: float) -> None:
    self._memory = memory
    # Sums over the probes before the latest, discounted, and over that one.
    self._before: Comparison | None = None
    self.latest: Comparison | None = None
    self._probe = -1
    # Step of the last choice: a second call in a row knows nothing new.
    self.chosen_at = -1

  def choose(
    self, comparison: Comparison, previous: int, step: int, probe: int
  ) -> int | None:
    """Take the comparison in and apply the rule.

    Args:
      comparison: of this evaluation.
      previous: index of the previous choice; negative if there is none.
      step: of this evaluation.
      probe: number of its probe: the same examples count once.
    """
    if probe != self._probe:
      self._before = self._discounted()
    self.latest, self._probe, self.chosen_at = comparison, probe, step
    return choose(_sum(self._before, comparison), previous)

  def _discounted(self) -> Comparison | None:
    if self.latest is None or not self.latest.is_finite or not self._memory:
      return None
    known, memory = _sum(self._before, self.latest), self._memory
    # The second count is one of squared weights.
    decay = torch.tensor([memory, memory * memory, memory]).double()
    return Comparison(
      memory * known.losses, memory * known.squares, decay * known.counts
    )

  def state_dict(self) -> dict[str, Any]:
    """The sums, equal on all ranks."""
    return {
      'chosen_at': self.chosen_at,
      'probe': self._probe,
      'before': _tensors(self._before),
      'latest': _tensors(self.latest),
    }

  def load_state_dict(self, state_dict: dict[str, Any]) -> None:
    """Continue from saved sums."""
    self.chosen_at = state_dict['chosen_at']
    self._probe = state_dict['probe']
    self._before, self.latest = (
      Comparison(*(t.cpu() for t in state_dict[key]))
      if state_dict[key]
      else None
      for key in ('before', 'latest')
    )


def _sum(one: Comparison | None, other: Comparison) -> Comparison:
  if one is None:
    return other
  return Comparison(
    one.losses + other.losses,
    one.squares + other.squares,
    one.counts + other.counts,
  )


def _tensors(comparison: Comparison | None) -> list[Tensor]:
  if comparison is None:
    return []
  return [comparison.losses, comparison.squares, comparison.counts]
