"""Random numbers of a run, all derived from one seed.

Same interface as the benchmark's numpy generator: a state is a pair of ints in
a numpy array, `split` makes several of one, `fold_in` makes one of a state and
an integer. The numbers themselves come from numpy's SeedSequence.
"""

import numpy as np
import torch

# Distinct last words: SeedSequence pads short entropy with zeros, so that
# without them fold_in(rng, 0) would equal a split of the same state.
_SPLIT = 1
_FOLD_IN = 2


def _states(entropy: list[int], num: int) -> np.ndarray:
  words = np.random.SeedSequence(entropy).generate_state(2 * num)
  # 31 bits: non-negative for whoever reads them as a signed int.
  return (words >> 1).astype(np.int32).reshape(num, 2)


def key(seed: int) -> np.ndarray:
  """State of a whole run, from a non-negative seed of any size."""
  return _states([seed], 1)[0]


def split(rng: np.ndarray, num: int = 2) -> np.ndarray:
  """`num` independent states made from one, as the rows of an array."""
  return _states([*np.asarray(rng).tolist(), _SPLIT], num)


def fold_in(rng: np.ndarray, data: int) -> np.ndarray:
  """A new state for the `data`-th use of `rng`."""
  return _states([*np.asarray(rng).tolist(), data, _FOLD_IN], 1)[0]


def torch_seed(rng: np.ndarray, rank: int = 0) -> int:
  """Seed for torch's generators; another one on every rank."""
  high, low = fold_in(rng, rank).tolist()
  return (high << 31) | low


def seed_torch(seed: int) -> None:
  """Seed torch's generators, those of a CUDA device only where there is one.

  The same numbers as after `torch.manual_seed`, which formats the stack three
  times, once for each kind of device that may be initialized later. That takes
  half a millisecond, more in deep stacks, and a run seeds before every step.
  """
  if torch.cuda.is_available():
    torch.manual_seed(seed)
  else:
    torch.default_generator.manual_seed(seed)
