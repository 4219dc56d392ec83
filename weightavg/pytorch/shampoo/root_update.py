"""New inverse roots for the factor matrices of equal blocks, batched."""

from collections.abc import Mapping, Sequence
from typing import Any

from weightavg.pytorch.shampoo import packed, settings
from weightavg.pytorch.shampoo.inverse_roots import half_roots
from weightavg.pytorch.shampoo.stacks import BlockStack

# Elements decomposed at once: bounds the memory, a few times as much.
_BATCH = 1 << 26


def update_roots(
  group: Mapping[str, Any],
  stack: BlockStack,
  chunk: slice,
  names: Sequence[str],
) -> list[str]:
  """Replace the roots of a chunk of blocks, on every mode.

  A root that neither dtype could compute stays what it was: the last good one,
  or the identity.

  Args:
    group: hyperparameters.
    stack: the blocks' state.
    chunk: which blocks.
    names: of all parameters.

  Returns:
    Labels of the roots that were kept.
  """
  step, beta2 = group['step'], group['betas'][1]
  correction = 1.0 if beta2 == 1 else 1 - beta2**step
  exponent = settings.exponent(group, len(stack.shape))
  kept = []
  for mode, pair in enumerate(stack.pairs):
    count = max(1, _BATCH // pair[0].numel())
    for begin in range(chunk.start, chunk.stop, count):
      end = min(begin + count, chunk.stop)
      factors = packed.factor_half(pair[begin:end]).unpack()
      roots, good = half_roots(
        factors.div_(correction), exponent, group['epsilon']
      )
      # One wait for the device, for the batch.
      bad = [i for i, is_good in enumerate(good.tolist()) if not is_good]
      if not bad:
        packed.root_half(pair[begin:end]).add_gram(roots, keep=0.0, add=1.0)
        continue
      for index in range(end - begin):
        place = begin + index
        if index not in bad:
          half = packed.root_half(pair[place : place + 1])
          half.add_gram(roots[index : index + 1], keep=0.0, add=1.0)
          continue
        block = stack.blocks[place]
        name = names[block.parameter]
        kept.append(f'{name}[block {block.index}, mode {mode}]')
  return kept
