"""Which steps are sampled, and the weight of each sample in the average.

Pure arithmetic, no tensors. After k samples x_1..x_k the average is
sum_j w_j x_j with sum_j w_j = 1. Each scheme gives the explicit weights w_j
(`weights`, what offline averaging and the tests use) and, where one exists,
the coefficient c_k of the recursion a_k = a_{k-1} + c_k (x_k - a_{k-1})
(`coefficient`, what online averaging uses). c_1 = 1: no start value leaks in.

>>> [round(7 * w, 12) for w in Ema(decay=0.5).weights(3)]
[1.0, 2.0, 4.0]
>>> Lawa(window=2).weights(3)
[0.0, 0.5, 0.5]
>>> Polynomial(power=0.0).weights(4)
[0.25, 0.25, 0.25, 0.25]
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Steps at which the weights are sampled.

  Args:
    every: steps between two samples, at least 1.
    start: step before which nothing is sampled.
  """

  every: int
  start: int = 0

  def is_sampled(self, step: int) -> bool:
    """Whether the weights after `step` optimizer steps (1, 2, ...) enter."""
    return step >= self.start and step % self.every == 0

  def steps(self, last: int) -> list[int]:
    """All sampled steps up to and including `last`."""
    first = max(1, -(-self.start // self.every)) * self.every
    return list(range(first, last + 1, self.every))


@dataclasses.dataclass(frozen=True)
class Lawa:
  """Uniform mean of the last `window` samples (Kaddour 2022, 2209.14981)."""

  window: int

  def weights(self, count: int) -> list[float]:
    """Weights of samples 1..count."""
    used = min(count, self.window)
    return [0.0] * (count - used) + [1.0 / used] * used


@dataclasses.dataclass(frozen=True)
class Ema:
  """Exponential average with `decay` per sample, normalised.

  w_j = (1 - decay) decay^(k-j) / (1 - decay^k)
  """

  decay: float

  def coefficient(self, count: int) -> float:
    """(1 - decay) / (1 - decay^k); expm1 keeps decays near 1 exact."""
    if self.decay == 0.0:
      return 1.0
    return (1.0 - self.decay) / -math.expm1(count * math.log(self.decay))

  def weights(self, count: int) -> list[float]:
    """Weights of samples 1..count."""
    return _unrolled(self, count)


@dataclasses.dataclass(frozen=True)
class Polynomial:
  """Polynomial-decay average (Shamir and Zhang 2013, 1212.1824, section 4).

  c_k = min(1, (power + 1) / (power + k)); power = 0 is Polyak's uniform mean.
  The horizon is a fraction 1 / (power + 1) of the samples so far.
  """

  power: float

  def coefficient(self, count: int) -> float:
    """Weight with which the count-th sample enters."""
    return min(1.0, (self.power + 1.0) / (self.power + count))

  def weights(self, count: int) -> list[float]:
    """Weights of samples 1..count."""
    return _unrolled(self, count)


Recursive = Ema | Polynomial
Single = Lawa | Ema | Polynomial


@dataclasses.dataclass(frozen=True)
class Candidates:
  """Several averages of the same samples, of which one at a time is shown.

  Args:
    names: of the candidates, for logs.
    schemes: of the candidates; None stands for the raw weights.
  """

  names: tuple[str, ...]
  schemes: tuple[Single | None, ...]


Scheme = Single | Candidates


def _unrolled(scheme: Recursive, count: int) -> list[float]:
  """w_j = c_j prod_{i>j} (1 - c_i), accumulated from the last sample back."""
  weights = [0.0] * count
  remaining = 1.0
  for j in range(count, 0, -1):
    c = scheme.coefficient(j)
    weights[j - 1] = c * remaining
    remaining *= 1.0 - c
  return weights


def samples_in_horizon(horizon: float, every: float) -> int:
  """N = max(1, round(horizon / every)); both in the same unit."""
  return max(1, round(horizon / every))


def decay_of_window(window: int) -> float:
  """EMA decay per sample whose horizon is `window` samples: 1 - 1/N."""
  return 1.0 - 1.0 / window
