"""Shampoo's state as plain data, keyed by parameter name and block.

Only rank 0 saves, without any collective, and every rank loads that one file,
on any number of ranks. So the other ranks' blocks are sent to rank 0 beforehand
(`Gathering`), over a gloo group of its own and without anybody waiting.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from weightavg.pytorch.shampoo import validation
from weightavg.pytorch.shampoo.block_state import BlockStack
from weightavg.pytorch.shampoo.blocking import Block
from weightavg.pytorch.shampoo.distribution import RankGroup
from weightavg.pytorch.shampoo.parameters import ParameterInfo

FORMAT = 'weightavg-shampoo-1'

# gloo counts bytes of a message in an int.
_MESSAGE_BYTES = 1 << 29


class Gathering:
  """State on its way to rank 0.

  Args:
    ranks: the group that shares the work; must be the one with rank 0.
    version: of the state that is sent.
    stacks: on rank 0, empty stacks on the CPU for each other rank's blocks; on
      another rank one list, of its own stacks.
  """

  def __init__(
    self,
    ranks: RankGroup,
    version: int,
    stacks: Sequence[Sequence[BlockStack]],
  ) -> None:
    self.version = version
    self.stacks = stacks if ranks.rank == 0 else []
    self._works: list[Any] = []
    # Held until they are sent, and copied because training may go on.
    self._sending: list[torch.Tensor] = []
    group = ranks.saving_group
    assert group is not None
    if ranks.rank == 0:
      for peer, theirs in enumerate(stacks, start=1):
        source = dist.get_global_rank(group, peer)
        for tag, piece in enumerate(_pieces(theirs)):
          work = dist.irecv(piece, src=source, group=group, tag=tag)
          self._works.append(work)
      return
    root = dist.get_global_rank(group, 0)
    for tag, piece in enumerate(_pieces(stacks[0])):
      copy = piece.detach().to('cpu', copy=True)
      self._sending.append(copy)
      self._works.append(dist.isend(copy, dst=root, group=group, tag=tag))

  def wait(self) -> None:
    """Until all has arrived, or has been sent."""
    for work in self._works:
      work.wait()
    self._works.clear()
    self._sending.clear()


def why_incomplete(
  ranks: RankGroup, gathering: Gathering | None, version: int
) -> str:
  """Why this rank cannot save the whole state now; empty if it can."""
  if ranks.size == 1:
    return ''
  if ranks.rank != 0 or not ranks.first:
    return 'Saved by a rank other than 0, which holds its own blocks only.'
  if gathering is None:
    return (
      'Saved without gather_state_for_checkpoint on all ranks: the other '
      "ranks' blocks are missing."
    )
  if gathering.version != version:
    return (
      'Saved after training had gone on since gather_state_for_checkpoint: '
      "the other ranks' blocks are out of date."
    )
  return ''


def block_states(
  stacks: Sequence[BlockStack],
) -> dict[Block, dict[str, torch.Tensor]]:
  """The state tensors of each block: views, by name."""
  return {
    block: {name: tensor[index] for name, tensor in stack.tensors().items()}
    for stack in stacks
    for index, block in enumerate(stack.blocks)
  }


def save_parameters(
  infos: Sequence[ParameterInfo],
  states: Mapping[Block, dict[str, torch.Tensor]],
) -> dict[str, Any]:
  """The blocks' state by parameter name."""
  return {
    info.name: {
      'shape': list(info.parameter.shape),
      'merged': list(info.merged),
      'blocks': [states[block] for block in info.blocks],
    }
    for info in infos
  }


def save_group(group: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
  """Hyperparameters of a group as plain values."""
  plain = {key: _plain(value) for key, value in group.items()}
  plain.pop('param_names', None)
  return plain | {'params': names}


def check(
  saved: Mapping[str, Any],
  infos: Sequence[ParameterInfo],
  groups: Sequence[Mapping[str, Any]],
  names: Sequence[Sequence[str]],
  stacks: Sequence[BlockStack],
) -> list[dict[str, Any]]:
  """The saved hyperparameters by group, if everything saved fits.

  Raises:
    ValueError: if the state is not Shampoo's, is incomplete, or belongs to
      other parameters or blocks.
  """
  if saved.get('format') != FORMAT:
    raise ValueError(
      f'Invalid state: format is {saved.get("format")!r}. Must be {FORMAT!r}.'
    )
  if not saved['complete']:
    raise ValueError(f'Invalid state: incomplete. {saved["reason"]}')
  if [group['params'] for group in saved['param_groups']] != list(names):
    raise ValueError(
      'Invalid state: it belongs to other parameters. '
      f'{_difference(saved["parameters"], names)}'
    )
  for info in infos:
    theirs = saved['parameters'][info.name]
    shapes = (list(info.parameter.shape), list(info.merged))
    if (theirs['shape'], theirs['merged']) != shapes or (
      len(theirs['blocks']) != len(info.blocks)
    ):
      raise ValueError(
        f'Invalid state of {info.name!r}: shape {theirs["shape"]} in '
        f'{len(theirs["blocks"])} blocks of {theirs["merged"]}. Must be '
        f'{shapes[0]} in {len(info.blocks)} blocks of {shapes[1]}.'
      )
  for block, tensors in block_states(stacks).items():
    info = infos[block.parameter]
    theirs = saved['parameters'][info.name]['blocks'][block.index]
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


def load_blocks(
  saved: Mapping[str, Any],
  infos: Sequence[ParameterInfo],
  stacks: Sequence[BlockStack],
) -> None:
  """Copy the saved state into the stacks."""
  for block, tensors in block_states(stacks).items():
    name = infos[block.parameter].name
    theirs = saved['parameters'][name]['blocks'][block.index]
    for key, tensor in tensors.items():
      tensor.copy_(theirs[key])


def _pieces(stacks: Sequence[BlockStack]) -> Iterator[torch.Tensor]:
  for stack in stacks:
    for tensor in stack.tensors().values():
      flat = tensor.view(-1)
      yield from flat.split(_MESSAGE_BYTES // flat.element_size())


def _plain(value: Any) -> Any:
  if isinstance(value, tuple):
    return [_plain(item) for item in value]
  return value.item() if isinstance(value, torch.Tensor) else value


def _hyperparameters(saved: Mapping[str, Any]) -> dict[str, Any]:
  values = {key: value for key, value in saved.items() if key != 'params'}
  return values | {'betas': tuple(values['betas'])}


def _kind(tensor: torch.Tensor) -> tuple[tuple[int, ...], str]:
  return tuple(tensor.shape), str(tensor.dtype)


def _difference(
  saved: Mapping[str, Any], names: Sequence[Sequence[str]]
) -> str:
  mine = {name for group in names for name in group}
  missing, extra = sorted(mine - set(saved)), sorted(set(saved) - mine)
  if not missing and not extra:
    return 'Same names, in another order or other groups.'
  return f'Missing: {missing[:3]}; unknown: {extra[:3]}.'
