"""Save and load Shampoo's state, keyed by parameter name and block.

Rank 0 alone saves, without a collective, and any number of ranks loads that one
file. `Gathering` therefore sends the other ranks' blocks to rank 0 beforehand,
in the background.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch

from weightavg.config_fields import plain
from weightavg.pytorch.gather import GatherToRankZero
from weightavg.pytorch.saved_state import check_fields
from weightavg.pytorch.shampoo import validation
from weightavg.pytorch.shampoo.block_state import BlockStack
from weightavg.pytorch.shampoo.blocking import Block
from weightavg.pytorch.shampoo.distribution import RankGroup
from weightavg.pytorch.shampoo.parameters import ParameterInfo

FORMAT = 'weightavg-shampoo-1'
_KINDS: dict[str, type] = {
  'complete': bool,
  'param_groups': list,
  'parameters': dict,
  'retried_roots': int,
  'kept_roots': int,
  'skipped_steps': int,
}


class Gathering:
  """State of the other ranks' blocks on its way to rank 0.

  Args:
    ranks: group that shares the work and contains rank 0.
    stacks: on rank 0, newly allocated CPU stacks of each other rank's blocks;
      on another rank a single entry, its own stacks.
  """

  def __init__(
    self, ranks: RankGroup, stacks: Sequence[Sequence[BlockStack]]
  ) -> None:
    assert ranks.saving_group is not None
    self.stacks = stacks if ranks.rank == 0 else []
    tensors = [_tensors(theirs) for theirs in stacks]
    self._transfer = GatherToRankZero(ranks.saving_group, tensors[0], tensors)

  def wait(self) -> None:
    """Wait until this rank has sent or received everything."""
    self._transfer.wait()


def why_incomplete(ranks: RankGroup, gathered: int | None, version: int) -> str:
  """Return why this rank cannot save the whole state now; '' if it can."""
  if ranks.size == 1:
    return ''
  if ranks.rank != 0 or not ranks.first:
    return 'Saved by a rank other than 0, which holds its own blocks only.'
  if gathered is None:
    return (
      'Saved without gather_state_for_checkpoint on all ranks: the other '
      "ranks' blocks are missing."
    )
  if gathered != version:
    return (
      'Saved after further steps since gather_state_for_checkpoint: '
      "the other ranks' blocks are out of date."
    )
  return ''


def block_states(
  stacks: Sequence[BlockStack],
) -> dict[Block, dict[str, torch.Tensor]]:
  """Return views of each block's state tensors by name."""
  return {
    block: {name: tensor[index] for name, tensor in stack.tensors().items()}
    for stack in stacks
    for index, block in enumerate(stack.blocks)
  }


def save_parameters(
  infos: Sequence[ParameterInfo],
  states: Mapping[Block, dict[str, torch.Tensor]],
  rooted: Set[Block],
) -> dict[str, Any]:
  """Return the blocks' state by parameter name, and which have taken roots."""
  return {
    info.name: {
      'shape': list(info.parameter.shape),
      'merged': list(info.merged),
      'blocks': [states[block] for block in info.blocks],
      'rooted': [block in rooted for block in info.blocks],
    }
    for info in infos
  }


def save_group(group: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
  """Return a group's hyperparameters as plain values."""
  values = {key: _plain(value) for key, value in group.items()}
  values.pop('param_names', None)
  return values | {'params': names}


def check(
  saved: Mapping[str, Any],
  infos: Sequence[ParameterInfo],
  options: Iterable[str],
  groups: Sequence[Mapping[str, Any]],
  names: Sequence[Sequence[str]],
  stacks: Sequence[BlockStack],
) -> list[dict[str, Any]]:
  """Check a saved state; return its hyperparameters by group.

  A group may lack what others than the optimizer keep there, as schedulers do.

  Raises:
    ValueError: if the state is not Shampoo's, is incomplete, or belongs to
      other parameters or blocks.
  """
  if not isinstance(saved, Mapping):
    raise ValueError(f'Invalid state: a {type(saved).__name__}.')
  if saved.get('format') != FORMAT:
    raise ValueError(
      f'Invalid state: format is {saved.get("format")!r}. Must be {FORMAT!r}.'
    )
  check_fields(saved, _KINDS, 'state')
  if not saved['complete']:
    raise ValueError(f'Invalid state: incomplete. {saved.get("reason")}')
  if len(saved['param_groups']) != len(groups):
    raise ValueError(
      f'Invalid state: {len(saved["param_groups"])} parameter groups. Must be '
      f'{len(groups)}.'
    )
  for theirs in saved['param_groups']:
    _check_mapping(theirs, 'a group')
    missing = {*options, 'params'} - {*theirs}
    if missing:
      raise ValueError(f'Invalid state: a group lacks {sorted(missing)[0]!r}.')
  if [group['params'] for group in saved['param_groups']] != list(names):
    raise ValueError(
      'Invalid state: it belongs to other parameters. '
      f'{_difference(saved["parameters"], names)}'
    )
  for info in infos:
    theirs = saved['parameters'].get(info.name, {})
    _check_mapping(theirs, f'the state of {info.name!r}')
    if not {'shape', 'merged', 'blocks'} <= theirs.keys():
      raise ValueError(f'Invalid state of {info.name!r}: it is incomplete.')
    shapes = (list(info.parameter.shape), list(info.merged))
    if (theirs['shape'], theirs['merged']) != shapes or (
      len(theirs['blocks']) != len(info.blocks)
    ):
      raise ValueError(
        f'Invalid state of {info.name!r}: shape {theirs["shape"]} in '
        f'{len(theirs["blocks"])} blocks of {theirs["merged"]}. Must be '
        f'{shapes[0]} in {len(info.blocks)} blocks of {shapes[1]}.'
      )
    rooted = theirs.get('rooted', [False] * len(info.blocks))
    if not isinstance(rooted, list) or len(rooted) != len(info.blocks):
      raise ValueError(
        f'Invalid state of {info.name!r}: rooted={rooted!r}. Must have '
        f'{len(info.blocks)} bools.'
      )
  for block, tensors in block_states(stacks).items():
    info = infos[block.parameter]
    theirs = saved['parameters'][info.name]['blocks'][block.index]
    _check_mapping(theirs, f'block {block.index} of {info.name!r}')
    mine = {name: _kind(tensor) for name, tensor in tensors.items()}
    if {name: _kind(tensor) for name, tensor in theirs.items()} != mine:
      raise ValueError(
        f'Invalid state of {info.name!r}, block {block.index}: '
        f'{ {name: _kind(tensor) for name, tensor in theirs.items()} }. '
        f'Must be {mine}.'
      )
  merged = [
    dict(group) | _hyperparameters(theirs)
    for group, theirs in zip(groups, saved['param_groups'], strict=True)
  ]
  for group in merged:
    validation.check_group(group)
  return [_hyperparameters(theirs) for theirs in saved['param_groups']]


def rooted_blocks(
  saved: Mapping[str, Any], infos: Sequence[ParameterInfo]
) -> set[Block] | None:
  """Return the blocks that had taken roots; None for an older state."""
  flags = {i.name: saved['parameters'][i.name].get('rooted') for i in infos}
  if None in flags.values():
    return None
  return {
    block
    for info in infos
    for block, is_rooted in zip(info.blocks, flags[info.name], strict=True)
    if is_rooted
  }


def load_blocks(
  saved: Mapping[str, Any],
  infos: Sequence[ParameterInfo],
  stacks: Sequence[BlockStack],
) -> None:
  """Copy a checked state into the stacks."""
  for block, tensors in block_states(stacks).items():
    name = infos[block.parameter].name
    theirs = saved['parameters'][name]['blocks'][block.index]
    for key, tensor in tensors.items():
      tensor.copy_(theirs[key])


def _tensors(stacks: Sequence[BlockStack]) -> list[torch.Tensor]:
  return [t for stack in stacks for t in stack.tensors().values()]


def _plain(value: Any) -> Any:
  if isinstance(value, tuple):
    return [_plain(item) for item in value]
  return value.item() if isinstance(value, torch.Tensor) else plain(value)


def _hyperparameters(saved: Mapping[str, Any]) -> dict[str, Any]:
  values = {key: value for key, value in saved.items() if key != 'params'}
  betas = values['betas']
  if isinstance(betas, list):
    betas = tuple(betas)
  return values | {'betas': betas}


def _check_mapping(value: Any, subject: str) -> None:
  if not isinstance(value, Mapping):
    raise ValueError(
      f'Invalid state: {subject} is a {type(value).__name__}. Must be a dict.'
    )


def _kind(value: Any) -> tuple[tuple[int, ...], str] | str:
  if not isinstance(value, torch.Tensor):
    return type(value).__name__
  return tuple(value.shape), str(value.dtype)


def _difference(
  saved: Mapping[str, Any], names: Sequence[Sequence[str]]
) -> str:
  mine = {name for group in names for name in group}
  missing, extra = sorted(mine - set(saved)), sorted(set(saved) - mine)
  if not missing and not extra:
    return 'Same names, in another order or other groups.'
  return f'Missing: {missing[:3]}; unknown: {extra[:3]}.'
