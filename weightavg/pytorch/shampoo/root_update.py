"""New inverse roots for factor matrices that are due, batched by size."""

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch

from weightavg.pytorch.shampoo import packed, settings
from weightavg.pytorch.shampoo.blocking import Block
from weightavg.pytorch.shampoo.inverse_roots import half_roots
from weightavg.pytorch.shampoo.stacks import BlockStack

# Elements decomposed at once: a GPU needs many matrices to be busy, a CPU works
# on one at a time anyway and only pays for the memory.
_CPU_BATCH = 1 << 20
_OTHER_BATCH = 1 << 26


@dataclasses.dataclass(frozen=True)
class RootJob:
  """One factor matrix whose root is due.

  Args:
    pair: its storage, [1, d, d + 1]; the root is written there.
    correction: what the factor is divided by, 1 - beta2^t.
    exponent: q of the root.
    epsilon: added to the spectrum.
    label: how a failure names it.
  """

  pair: torch.Tensor
  correction: float
  exponent: float
  epsilon: float
  label: str


def root_jobs(
  group: Mapping[str, Any],
  stacks: Sequence[BlockStack],
  due: Container[Block],
  names: Sequence[str],
) -> list[RootJob]:
  """One job for each factor matrix of the stacks' blocks that are due.

  Blocks without a gradient in this step take part.
  """
  step, beta2 = group['step'], group['betas'][1]
  correction = 1.0 if beta2 == 1 else 1 - beta2**step
  return [
    RootJob(
      pair[index : index + 1],
      correction,
      settings.exponent(group, len(stack.shape)),
      group['epsilon'],
      f'{names[block.parameter]}[block {block.index}, mode {mode}]',
    )
    for stack in stacks
    for index, block in enumerate(stack.blocks)
    if block in due
    for mode, pair in enumerate(stack.pairs)
  ]


def update_roots(jobs: Sequence[RootJob]) -> list[str]:
  """Replace the roots; returns the labels of those that had to be kept.

  A root that neither dtype could compute stays what it was: the last good one,
  or the identity.
  """
  kept = []
  for batch in _batches(jobs):
    first = batch[0]
    factors = torch.cat(
      [packed.factor_half(job.pair).unpack() for job in batch]
    )
    factors.div_(first.correction)
    roots, good = half_roots(factors, first.exponent, first.epsilon)
    for index, (job, is_good) in enumerate(
      zip(batch, good.tolist(), strict=True)
    ):
      if is_good:
        half = packed.root_half(job.pair)
        half.add_gram(roots[index : index + 1], keep=0.0, add=1.0)
      else:
        kept.append(job.label)
  return kept


def _batches(jobs: Sequence[RootJob]) -> Iterator[list[RootJob]]:
  groups: dict[tuple, list[RootJob]] = {}
  for job in jobs:
    pair = job.pair
    key = (
      pair.shape,
      pair.dtype,
      pair.device,
      job.correction,
      job.exponent,
      job.epsilon,
    )
    groups.setdefault(key, []).append(job)
  for members in groups.values():
    pair = members[0].pair
    limit = _CPU_BATCH if pair.device.type == 'cpu' else _OTHER_BATCH
    count = max(1, limit // pair.numel())
    for start in range(0, len(members), count):
      yield members[start : start + count]
