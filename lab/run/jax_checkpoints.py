"""Checkpoints of runs in JAX, with the keys of `lab.run.checkpoints`.

One file of flax's msgpack. Of `optimizer_state` the tree of arrays is saved,
not the compiled functions beside it, as the benchmark does.
"""

import json
from typing import Any

import jax
from flax import serialization

from lab.core.errors import InputError
from lab.run import checkpoints
from lab.run.run_state import RunState

TREES = ('model_params', 'optimizer_state', 'model_state')
# Numbers and nested lists of them.
PLAIN = ('train_state', 'eval_results', 'global_step', 'preemption_count')


def _trees(state: RunState) -> dict[str, Any]:
  return {
    'model_params': state.model_params,
    'optimizer_state': state.optimizer_state[0],
    'model_state': state.model_state,
  }


def encode(state: RunState) -> bytes:
  """Return the content of a checkpoint."""
  plain = {key: getattr(state, key) for key in PLAIN}
  content = serialization.to_state_dict(_trees(state))
  return serialization.msgpack_serialize(
    {**content, 'plain': json.dumps(plain)}
  )


def read(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Return the trees and the plain values of a checkpoint file.

  Raises:
    InputError: the file cannot be read or is not a checkpoint of a run.
  """
  try:
    with open(path, 'rb') as file:
      content = serialization.msgpack_restore(file.read())
    plain = json.loads(content.pop('plain'))
    if set(plain) != set(PLAIN) or set(content) != set(TREES):
      raise ValueError('other keys')
  except Exception as error:
    # msgpack raises whatever its reader meets first.
    raise InputError(
      f'Cannot read the checkpoint {path}: it is truncated or not a checkpoint '
      f'of a run in JAX ({type(error).__name__}).'
    ) from error
  return content, plain


def damage(path: str) -> str | None:
  """Return what is wrong with a file without a checksum, or None."""
  try:
    read(path)
  except InputError:
    return 'truncated or not a checkpoint of a run in JAX'
  return None


def _check_arrays(expected: Any, found: Any) -> None:
  """Raise ValueError for an array of another shape or dtype.

  The submission checks the shapes of its own state, part of which has any
  length: the examples by which averages are compared.
  """

  def check(path: Any, own: Any, other: Any) -> None:
    is_own = path[0] == jax.tree_util.DictKey('optimizer_state')
    for what in ('dtype',) if is_own else ('shape', 'dtype'):
      mine, theirs = getattr(own, what, None), getattr(other, what, None)
      if mine != theirs:
        name = jax.tree_util.keystr(path)
        raise ValueError(f'{what} {theirs} of {name} must be {mine}')

  jax.tree_util.tree_map_with_path(check, expected, found)


def restore(state: RunState, path: str) -> None:
  """Load a checkpoint into a freshly initialised run.

  Raises:
    InputError: the file cannot be read or belongs to another model or
      submission.
  """
  content, plain = read(path)
  try:
    checkpoints.check_plain(plain, path)
    trees = serialization.from_state_dict(_trees(state), content)
    _check_arrays(_trees(state), trees)
    _, trainer = state.optimizer_state
    own = trainer.own(trees['optimizer_state'])
  except InputError:
    raise
  except Exception as error:
    # A foreign file fails in as many ways as flax and the trainer have.
    text = ' '.join(str(error).split())[:200]
    raise InputError(
      f'Cannot resume from {path}: made by another model or submission: {text}'
    ) from error
  state.optimizer_state = own, trainer
  state.model_params = trees['model_params']
  state.model_state = trees['model_state']
  state.train_state = plain['train_state']
  state.eval_results = [(step, row) for step, row in plain['eval_results']]
  state.global_step = plain['global_step']
  state.preemption_count = plain['preemption_count'] + 1
