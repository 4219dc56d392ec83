"""The state of a run as it is trained, saved and restored.

AlgoPerf saves the first element of `optimizer_state`, a tree of arrays, with
flax's checkpoints. Restored arrays come back on the host, or with a leading
axis of devices (the benchmark replicates them for `jax.pmap`); both are put
back onto the devices of this run.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from weightavg.jax import identity


class TrainState(NamedTuple):
  """Arrays of the compiled step, on the devices.

  Attributes:
    step: steps so far; shape=(), dtype=int32.
    params: the raw weights, which are trained; y where training takes place at
      an average. The benchmark holds the same arrays, or their average between
      `prepare_for_eval` and the next `update_params`.
    model_state: raw running statistics, or None.
    optimizer: state of the optimizer.
    averages: state of the averages; running statistics of the average where
      training takes place at it.
  """

  step: Any
  params: Any
  model_state: Any
  optimizer: Any
  averages: Any


class ChoiceState(NamedTuple):
  """State of the choice among averages, on the host.

  Attributes:
    selection: sums over the probes (`weightavg.jax.selection`).
    chosen_at: step of the latest choice, -1 before; shape=(), dtype=int32.
    probe_number: probes set aside so far; shape=(), dtype=int32.
    probe: the examples, encoded; dtype=uint8, any length.
  """

  selection: Any
  chosen_at: Any
  probe_number: Any
  probe: Any


class RunState(NamedTuple):
  """The saved element of `optimizer_state`.

  Attributes:
    budget: T in steps, to refuse the state of another one.
    train: arrays of the compiled step.
    clock: the plan of the budget, encoded (`weightavg.jax.pace`); dtype=uint8.
    choice: a `ChoiceState`; an empty tuple if nothing is chosen.
    point: values of the point, encoded (`weightavg.jax.identity`); dtype=uint8.
  """

  budget: Any
  train: TrainState
  clock: Any
  choice: Any
  point: Any


_OF_ANY_LENGTH = (
  jax.tree_util.GetAttrKey('probe'),
  jax.tree_util.GetAttrKey('point'),
)


def batch_mesh() -> Mesh:
  """All devices in one axis, along which batches are divided."""
  return Mesh(np.array(jax.devices()), ('batch',))


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """Divide a batch over the devices, leaf by leaf.

  A leaf whose rows do not divide evenly is replicated.
  """

  def put(leaf: Any) -> jax.Array:
    shape = np.shape(leaf)
    divides = bool(shape) and shape[0] % mesh.size == 0
    spec = PartitionSpec('batch') if divides else PartitionSpec()
    return jax.device_put(leaf, NamedSharding(mesh, spec))

  return jax.tree.map(put, batch)


def state_shardings(
  state: TrainState, mesh: Mesh, shard_averages: bool
) -> TrainState:
  """Return the sharding of every leaf.

  Args:
    state: arrays or their shapes.
    mesh: of all devices.
    shard_averages: divide each average along its last axis that the devices
      divide evenly; a leaf without one, and everything else, is replicated.
  """

  def divided(leaf: Any) -> NamedSharding:
    axes = [a for a, n in enumerate(leaf.shape) if n and n % mesh.size == 0]
    if not axes:
      return NamedSharding(mesh, PartitionSpec())
    spec = [None] * axes[-1] + ['batch']
    return NamedSharding(mesh, PartitionSpec(*spec))

  everywhere = NamedSharding(mesh, PartitionSpec())
  shardings = jax.tree.map(lambda _: everywhere, state)
  if not shard_averages:
    return shardings
  return shardings._replace(averages=jax.tree.map(divided, state.averages))


def restored(state: RunState, like: RunState) -> RunState:
  """Check a state that this process did not make, and drop a device axis.

  Args:
    state: as a checkpoint gives it.
    like: shapes and dtypes of the state of this run; its budget and point.

  Returns:
    The state with arrays of the shapes of `like`, on the host.

  Raises:
    ValueError: for the state of another submission, model, budget or point.
  """
  leaves = jax.tree.leaves(state)
  expected = jax.tree_util.tree_leaves_with_path(like)
  structure: Any = jax.tree.structure(like)
  if jax.tree.structure(state) != structure:
    raise ValueError(
      'Invalid checkpoint: its optimizer state has another structure than '
      "this submission's."
    )
  plain = []
  for leaf, (path, wanted) in zip(leaves, expected, strict=True):
    value, shape = leaf, np.shape(leaf)
    has_any_length = path[-1] in _OF_ANY_LENGTH
    if len(shape) == len(wanted.shape) + 1:
      value, shape = np.asarray(leaf)[0], shape[1:]
    if shape != wanted.shape and not (has_any_length and len(shape) == 1):
      raise ValueError(
        f'Invalid checkpoint: {jax.tree_util.keystr(path)} has shape {shape}, '
        f'this submission has {wanted.shape}.'
      )
    # Not by np.asarray, which would fetch an array from the device. Whole
    # numbers come back as Python's.
    dtype = getattr(value, 'dtype', None) or np.asarray(value).dtype
    if dtype != wanted.dtype and jnp.issubdtype(wanted.dtype, jnp.inexact):
      raise ValueError(
        f'Invalid checkpoint: {jax.tree_util.keystr(path)} is {dtype}, this '
        f'submission has {wanted.dtype}.'
      )
    plain.append(value)
  result = jax.tree.unflatten(structure, plain)
  if int(result.budget) != int(like.budget):
    raise ValueError(
      f'Invalid checkpoint: saved with budget={int(result.budget)}, this '
      f'submission has budget={int(like.budget)}.'
    )
  identity.check(result.point, like.point)
  return result
