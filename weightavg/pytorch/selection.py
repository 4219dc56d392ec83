"""The rule by which one of several averages is chosen, and its statistics.

All candidates are evaluated on the same examples, so what counts is the
difference of their losses example by example, which is far less noisy than the
losses. With l_ij the loss of candidate i on example j (summed over its
elements), p the previous choice and N the number of valid elements:

  L_i = sum_j l_ij / N
  d_j = l_pj - l_bj,   b = argmin_i L_i (the first of equal ones)
  SE  = sqrt(M / (M - 1) * (sum_j d_j^2 - (sum_j d_j)^2 / M)) / N

b takes the place of p if L_p - L_b > SE; otherwise p stays. A candidate whose
loss is not finite is out; if p is out, or there is none yet, b is chosen; if
all are out, nothing is. With a single example there is no SE, and p stays.
"""

import dataclasses
import math

import torch
import torch.distributed as dist
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Sums over the examples of all ranks, for each candidate.

  Args:
    losses: sum_j l_ij.
    gains: sum_j (l_pj - l_ij); zero where there is no previous choice.
    squares: sum_j (l_pj - l_ij)^2.
    examples: M.
    elements: N.
  """

  losses: list[float]
  gains: list[float]
  squares: list[float]
  examples: int
  elements: float

  @property
  def means(self) -> list[float]:
    """L_i."""
    return [loss / max(self.elements, 1.0) for loss in self.losses]


def compare(losses: Tensor, elements: Tensor, previous: int) -> Comparison:
  """Reduce this rank's losses, and all ranks'; a collective if there are more.

  Args:
    losses: [candidates, examples], any floating dtype.
    elements: number of valid elements of this rank's examples, a scalar.
    previous: index of the previous choice; negative if there is none.
  """
  # Differences of nearly equal losses, and their squares: in float64.
  losses = losses.double()
  if previous < 0:
    gains = torch.zeros_like(losses)
  else:
    gains = losses[previous] - losses
  sums = torch.stack([losses.sum(1), gains.sum(1), gains.square().sum(1)])
  counts = torch.stack([losses.new_tensor(losses.shape[1]), elements.double()])
  packed = torch.cat([sums.flatten(), counts])
  if dist.is_initialized() and dist.get_world_size() > 1:
    dist.all_reduce(packed)
  values = packed.tolist()
  n = losses.shape[0]
  return Comparison(
    losses=values[:n],
    gains=values[n : 2 * n],
    squares=values[2 * n : 3 * n],
    examples=round(values[-2]),
    elements=values[-1],
  )


def standard_error(comparison: Comparison, which: int) -> float:
  """SE of the mean difference between the previous choice and a candidate.

  Infinite with fewer than two examples.
  """
  count = comparison.examples
  if count < 2:
    return math.inf
  gain, square = comparison.gains[which], comparison.squares[which]
  # Rounding may leave a constant difference with a variance below zero.
  spread = max(0.0, square - gain * gain / count) * count / (count - 1)
  return math.sqrt(spread) / max(comparison.elements, 1.0)


def choose(comparison: Comparison, previous: int) -> int | None:
  """The candidate to be shown; None if none has a finite loss.

  >>> tie = Comparison([3.0, 2.0], [0.0, 1.0], [0.0, 1.0], 4, 4.0)
  >>> choose(tie, previous=0)  # gain 0.25, standard error 0.25
  0
  >>> choose(tie, previous=-1)
  1
  """
  means = comparison.means
  finite = [i for i, mean in enumerate(means) if math.isfinite(mean)]
  if not finite:
    return None
  best = min(finite, key=lambda i: means[i])
  if previous not in finite:
    return best
  gain = means[previous] - means[best]
  return best if gain > standard_error(comparison, best) else previous
