"""Examples held out of training, by which averages are compared.

A probe is the first rows of a batch of the training queue that is set aside. It
is never trained on where the data pass once; where they repeat, not since the
epoch before. A checkpoint holds it as one array of bytes: its shapes are not
known when the state is made.
"""

from typing import Any

import jax
import numpy as np
from flax import serialization

Batch = dict[str, Any]
# A state without a probe; checkpoints cannot hold an array of no elements.
NO_PROBE = np.zeros(1, np.uint8)


def num_examples(batch: Batch) -> int:
  """Rows of a batch: those of its (first) target."""
  return len(jax.tree.leaves(batch['targets'])[0])


def first_examples(batch: Batch, count: int) -> Batch:
  """Copy the first rows to the host; all where rows cannot be told apart.

  A batch of graphs, for example, holds its nodes one graph after the other.
  """
  total = num_examples(batch)
  whole = any(np.shape(leaf)[:1] != (total,) for leaf in jax.tree.leaves(batch))
  return jax.tree.map(
    lambda leaf: np.array(leaf if whole else leaf[:count]), batch
  )


def encode(batch: Batch) -> np.ndarray:
  """Write the arrays of a batch into one array of bytes."""
  leaves = dict(enumerate(map(np.asarray, jax.tree.leaves(batch))))
  named = {str(index): leaf for index, leaf in leaves.items()}
  return np.frombuffer(serialization.msgpack_serialize(named), np.uint8)


def decode(content: np.ndarray, like: Batch) -> Batch | None:
  """Read a probe in the nest of a training batch.

  Returns:
    The probe; None if there is none, or it was made of other batches.
  """
  if content.size == NO_PROBE.size:
    return None
  named = serialization.msgpack_restore(np.asarray(content).tobytes())
  structure: Any = jax.tree.structure(like)
  if structure.num_leaves != len(named):
    return None
  leaves = [named[str(index)] for index in range(len(named))]
  return jax.tree.unflatten(structure, leaves)


def valid_examples(batch: Batch) -> np.ndarray:
  """Tell which examples are not masked as a whole: padding is no evidence."""
  rows, mask = num_examples(batch), batch.get('weights')
  if mask is None or len(mask) != rows:
    return np.ones(rows, bool)
  return (np.asarray(mask).reshape(rows, -1) != 0).any(1)
