"""New inverse roots for the factor matrices of equal blocks, batched."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from weightavg.pytorch.shampoo import symmetric_pairs, validation
from weightavg.pytorch.shampoo.block_state import BlockStack
from weightavg.pytorch.shampoo.inverse_roots import half_roots

# Elements decomposed at once: bounds the memory, a few times as much.
_BATCH = 1 << 26


@dataclasses.dataclass
class RootReport:
  """Roots that did not go as usual, each by parameter, block and mode.

  Args:
    retried: decomposed again in float64.
    kept: failed there as well, or had no finite factor: the last good one, or
      the identity, is kept.
  """

  retried: list[str] = dataclasses.field(default_factory=list)
  kept: list[str] = dataclasses.field(default_factory=list)


def update_roots(
  group: Mapping[str, Any],
  stack: BlockStack,
  chunk: slice,
  names: Sequence[str],
) -> RootReport:
  """Replace the roots of a chunk of blocks, on every mode.

  A root that neither dtype could compute stays what it was: the last good one,
  or the identity.

  Args:
    group: hyperparameters.
    stack: the blocks' state.
    chunk: which blocks.
    names: of all parameters.

  Returns:
    What did not go as usual.
  """
  step, beta2 = group['step'], group['betas'][1]
  correction = 1.0 if beta2 == 1 else 1 - beta2**step
  exponent = validation.exponent(group, len(stack.shape))
  report = RootReport()
  for mode, pair in enumerate(stack.pairs):
    count = max(1, _BATCH // pair[0].numel())
    for begin in range(chunk.start, chunk.stop, count):
      end = min(begin + count, chunk.stop)
      factors = symmetric_pairs.factor_half(pair[begin:end]).unpack()
      roots, good, retried = half_roots(
        factors.div_(correction), exponent, group['epsilon']
      )
      labels = [
        f'{names[block.parameter]}[block {block.index}, mode {mode}]'
        for block in stack.blocks[begin:end]
      ]
      report.retried += [labels[index] for index in retried]
      if all(good):
        symmetric_pairs.root_half(pair[begin:end]).add_gram(
          roots, keep=0.0, add=1.0
        )
        continue
      for index, is_good in enumerate(good):
        if is_good:
          place = begin + index
          half = symmetric_pairs.root_half(pair[place : place + 1])
          half.add_gram(roots[index : index + 1], keep=0.0, add=1.0)
        else:
          report.kept.append(labels[index])
  return report
