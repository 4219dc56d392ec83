"""Examples held out of training, by which averages are compared.

A probe is the first rows of a batch of the training queue that is set aside. It
is never trained on where the data pass once; where they repeat, not since the
epoch before. A host that resumes a run with the data from the start on, as
AlgoPerf does, repeats them. In a checkpoint, which rank 0 alone writes, are the
shares of all ranks: they are on their way to it from the moment a probe is set
aside.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
from absl import logging
from torch import Tensor

from weightavg.pytorch.async_copy import Worker
from weightavg.pytorch.distributed import rank_and_world

Batch = dict[str, Any]


def leaves(tree: Any) -> Iterator[Tensor]:
  """Tensors of nested dicts, tuples and lists, in order."""
  if isinstance(tree, Tensor):
    yield tree
  elif isinstance(tree, dict):
    for value in tree.values():
      yield from leaves(value)
  elif isinstance(tree, tuple | list):
    for value in tree:
      yield from leaves(value)


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
  """The same nest with every tensor replaced; other leaves stay."""
  if isinstance(tree, Tensor):
    return function(tree)
  if isinstance(tree, dict):
    return {key: mapped(function, value) for key, value in tree.items()}
  if isinstance(tree, tuple | list):
    values = [mapped(function, value) for value in tree]
    # A named tuple (a batch of graphs) takes its fields one by one.
    is_named = hasattr(tree, '_fields')
    return type(tree)(*values) if is_named else type(tree)(values)
  return tree


def num_examples(batch: Batch) -> int:
  """Rows of a batch: those of its (first) target."""
  return len(next(leaves(batch['targets'])))


def first_examples(batch: Batch, count: int) -> Batch:
  """Copy the first rows, or all where rows cannot be told apart.

  A batch of graphs, say, has its nodes behind each other.
  """
  total = num_examples(batch)
  if any(t.ndim == 0 or len(t) != total for t in leaves(batch)):
    return mapped(torch.clone, batch)
  return mapped(lambda t: t[:count].clone(), batch)


class Probe:
  """This rank's share of the examples that are set aside.

  Args:
    examples: over all ranks; None takes a quarter of a batch.
    every: steps between two renewals.
    checkpoints: whether the probe can be saved. Without it, a run that is
      resumed sets a new one aside in its first step.
  """

  def __init__(
    self, examples: int | None, every: int, checkpoints: bool = True
  ) -> None:
    self._rank, self._world_size = rank_and_world()
    self._examples = examples
    self._every = every
    self._checkpoints = checkpoints
    self._group = None
    if self._world_size > 1 and checkpoints:
      # A group of its own: the gathering runs beside other collectives.
      self._group = dist.new_group(backend='gloo')
      self._worker = Worker()
    self.batch: Batch | None = None
    # How many have been set aside.
    self.number = 0
    # After a restore: tensors whose nest the next batch shows.
    self._loose: list[Tensor] | None = None
    self._shares: Future | None = None

  def renew_every(self, every: int) -> None:
    """Change the number of steps between two renewals."""
    self._every = every

  def is_due(self, global_step: int) -> bool:
    """True if the step that begins now has to set a new probe aside."""
    is_missing = self.batch is None and self._loose is None
    return is_missing or global_step % self._every == 0

  def check_size(self, batch: Batch) -> None:
    """Raise ValueError for a probe that is larger than a batch."""
    available = num_examples(batch) * self._world_size
    if self._examples is not None and self._examples > available:
      raise ValueError(
        f'Invalid averaging_probe_examples={self._examples}. Must be at most '
        f'the batch size, {available}.'
      )

  def set_aside(self, batch: Batch) -> None:
    """Keep the first examples of a batch; the old probe goes."""
    if self.batch is None:
      # Later a queue may end with a short batch: what is there will do.
      self.check_size(batch)
    if self._examples is None:
      count = -(-num_examples(batch) // 4)
    else:
      count = -(-self._examples // self._world_size)
    self.batch = first_examples(batch, count)
    self.number += 1
    self._loose = self._shares = None
    if self._group is not None:
      share = [t.cpu() for t in leaves(self.batch)]
      self._shares = self._worker.submit(lambda: self._gather(share))

  def _gather(self, share: list[Tensor]) -> list[list[Tensor]] | None:
    shares = [None] * self._world_size if self._rank == 0 else None
    dist.gather_object(share, shares, dst=0, group=self._group)
    return shares  # type: ignore[return-value]

  def fit(self, batch: Batch) -> None:
    """Give a restored probe the nest and the devices of a training batch."""
    if self._loose is None:
      return
    saved, self._loose = self._loose, None
    # A batch of another make: the next step sets a new probe aside.
    if len(saved) == len([*leaves(batch)]):
      tensors = iter(saved)
      self.batch = mapped(lambda t: next(tensors).to(t.device), batch)

  def state_dict(self) -> dict[str, Any]:
    """The shares of all ranks, on rank 0; none where they are not known."""
    return {'number': self.number, 'shares': self._all_shares()}

  def _all_shares(self) -> list[list[Tensor]]:
    if not self._checkpoints:
      return []
    if self._shares is not None:
      try:
        return self._shares.result() or []
      except (RuntimeError, ValueError) as error:
        logging.warning('The probe did not arrive: %s', error)
        return []
    if self._world_size == 1 and self.batch is not None:
      return [list(leaves(self.batch))]
    return []

  def load_state_dict(self, state_dict: dict[str, Any]) -> None:
    """Take this rank's share; of another number of ranks, none."""
    self.number, shares = state_dict['number'], state_dict['shares']
    self.batch = self._loose = self._shares = None
    if len(shares) == self._world_size:
      self._loose = shares[self._rank]
      # A run that is resumed at its very end saves again as it is.
      self._shares = Future()
      kept = shares if self._rank == 0 else []
      self._shares.set_result([[t.cpu() for t in share] for share in kept])
