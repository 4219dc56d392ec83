"""Batches as pure functions of (seed, index), so that skipping costs nothing.

Batch i of a training stream is drawn from numpy's Philox generator with a key
made from the seed and a counter that starts at i * 2^128: no batch depends on
those before it, and a resumed run jumps to its place in O(1). Every rank
draws the whole global batch and keeps its own slice: the same global batch on
one process and on many.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

Batch = dict[str, torch.Tensor]
MakeBatch = Callable[[np.random.Generator, int], dict[str, np.ndarray]]


def seed_words(rng: Any) -> list[int]:
  """Return a pair of ints (or one int) as words that numpy seeds with."""
  return [int(word) & 0xFFFFFFFF for word in np.ravel(np.asarray(rng))]


def philox_key(rng: Any, *salt: int) -> np.ndarray:
  """Key of a stream: 128 bits from a seed and what the stream is for."""
  entropy = [*seed_words(rng), *salt]
  return np.random.SeedSequence(entropy).generate_state(2, np.uint64)


def generator_at(key: np.ndarray, index: int) -> np.random.Generator:
  """Return the generator of draw `index` of the stream `key`."""
  return np.random.Generator(np.random.Philox(key=key, counter=index << 128))


def rank_slice(global_batch_size: int, rank: int, world_size: int) -> slice:
  """Return the part of a global batch that one rank keeps.

  Raises:
    ValueError: the batch does not divide among the ranks.
  """
  if global_batch_size < 1 or global_batch_size % world_size:
    raise ValueError(
      f'Invalid {global_batch_size=}. Must be a positive multiple of the '
      f'number of processes, {world_size}.'
    )
  size = global_batch_size // world_size
  return slice(rank * size, (rank + 1) * size)


class _Stream(Iterator[Batch]):
  """Batches by their position."""

  position = 0

  def skip(self, n: int) -> None:
    """Leave out the next n batches."""
    if n < 0:
      raise ValueError(f'Invalid {n=}. Must be at least 0.')
    self.position += n


class TrainStream(_Stream):
  """Endless training batches with O(1) `skip`.

  Args:
    make_batch: draws a global batch of a size from a generator; the arrays'
      first axis is the example.
    key: from `philox_key`.
    global_batch_size: examples over all ranks.
    device: where the batches go.
    rank: this process.
    world_size: number of processes.
  """

  def __init__(
    self,
    make_batch: MakeBatch,
    key: np.ndarray,
    global_batch_size: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
  ) -> None:
    self._make_batch = make_batch
    self._key = key
    self._global_batch_size = global_batch_size
    self._device = device
    self._slice = rank_slice(global_batch_size, rank, world_size)

  def __next__(self) -> Batch:
    generator = generator_at(self._key, self.position)
    self.position += 1
    arrays = self._make_batch(generator, self._global_batch_size)
    return {
      name: torch.as_tensor(array[self._slice]).to(self._device)
      for name, array in arrays.items()
    }


class RepeatedStream(TrainStream):
  """The first batches of a `TrainStream`, again and again, with O(1) `skip`.

  Each pass takes every example once, in an order of its own.

  Args:
    num_batches: of one pass.
    *args: those of `TrainStream`.
  """

  def __init__(self, num_batches: int, *args: Any) -> None:
    super().__init__(*args)
    drawn = [
      self._make_batch(generator_at(self._key, index), self._global_batch_size)
      for index in range(num_batches)
    ]
    self._arrays = {
      name: np.concatenate([arrays[name] for arrays in drawn])
      for name in drawn[0]
    }
    self._num_batches = num_batches
    self._epoch = -1
    self._order = np.empty(0, int)

  def __next__(self) -> Batch:
    epoch, index = divmod(self.position, self._num_batches)
    self.position += 1
    if epoch != self._epoch:
      # Its own draw: the examples come from those before it.
      generator = generator_at(self._key, self._num_batches + epoch)
      examples = self._num_batches * self._global_batch_size
      self._epoch, self._order = epoch, generator.permutation(examples)
    start = index * self._global_batch_size
    rows = self._order[start + self._slice.start : start + self._slice.stop]
    return {
      name: torch.as_tensor(array[rows]).to(self._device)
      for name, array in self._arrays.items()
    }


class EvalStream(_Stream):
  """A fixed split in order, over and over, its last batch padded.

  Every batch carries 'weights': 1 for an example, 0 for padding.
  """

  def __init__(
    self,
    arrays: dict[str, torch.Tensor],
    global_batch_size: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
  ) -> None:
    self._arrays = arrays
    self._global_batch_size = global_batch_size
    self._device = device
    self._slice = rank_slice(global_batch_size, rank, world_size)
    self._num_examples = len(arrays['inputs'])
    self._num_batches = -(-self._num_examples // global_batch_size)

  def __next__(self) -> Batch:
    start = self.position % self._num_batches * self._global_batch_size
    self.position += 1
    index = torch.arange(start + self._slice.start, start + self._slice.stop)
    weights = (index < self._num_examples).float()
    # Padding repeats the last example: finite, and weighted with zero.
    index = index.clamp_(max=self._num_examples - 1)
    batch = {name: array[index] for name, array in self._arrays.items()}
    batch['weights'] = weights
    return {name: array.to(self._device) for name, array in batch.items()}
