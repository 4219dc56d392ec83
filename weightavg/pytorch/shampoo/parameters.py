"""Parameters with clean names, cut into blocks."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from weightavg.pytorch import dtensors
from weightavg.pytorch.models import clean_names, is_named_tensor
from weightavg.pytorch.shampoo import blocking
from weightavg.pytorch.shampoo.blocking import Block


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
  """A parameter, its clean name and its blocks.

  Args:
    name: name without the wrappers' prefixes (`module.`, `_orig_mod.`).
    parameter: the weights.
    merged: shape with merged dims, from which blocks are cut.
    blocks: all blocks, in order.
  """

  name: str
  parameter: torch.nn.Parameter
  merged: tuple[int, ...]
  blocks: tuple[Block, ...]

  def views(self, tensor: torch.Tensor) -> dict[Block, torch.Tensor]:
    """Return the blocks' views of a contiguous tensor like the parameter."""
    merged = tensor.view(self.merged)
    return {block: block.cut(merged) for block in self.blocks}


def named_groups(
  params: Iterable[Any],
) -> tuple[list[dict[str, Any]], list[list[str]]]:
  """Split `params` into torch's parameter groups and the names of each.

  Args:
    params: parameters, (name, parameter) pairs, or dicts whose `params` hold
      either. A parameter that occurs twice in a group (tied weights) counts
      once; a parameter without a name is called `<group>.<index>`.

  Raises:
    ValueError: if there are no parameters, no order among them, or two share a
      name.
  """
  if isinstance(params, torch.Tensor):
    raise ValueError('Invalid params: a tensor. Must be a list of parameters.')
  items = _ordered(params)
  if not items:
    raise ValueError('Invalid params=[]. Must hold at least one parameter.')
  are_groups = [isinstance(item, Mapping) for item in items]
  if any(are_groups) and not all(are_groups):
    raise ValueError(
      f'Invalid params. Entry {are_groups.index(False)} is no parameter group, '
      'which others are.'
    )
  groups = (
    [dict(item) for item in items] if all(are_groups) else [{'params': items}]
  )
  names: list[list[str]] = []
  given: list[str] = []
  for number, group in enumerate(groups):
    members = group.get('params', [])
    members = (
      [members] if isinstance(members, torch.Tensor) else _ordered(members)
    )
    if not members:
      raise ValueError(
        f'Invalid params=[] in group {number}. Must hold a parameter.'
      )
    unique: dict[int, tuple[str, torch.Tensor]] = {}
    for index, member in enumerate(members):
      named = isinstance(member, tuple)
      pair = member if named else (f'{number}.{index}', member)
      if not is_named_tensor(pair):
        raise ValueError(
          f'Invalid params. Entry {index} of group {number} is no tensor and '
          'no pair of a name and a tensor.'
        )
      name, tensor = pair
      if named:
        given.append(name)
      unique.setdefault(id(tensor), (name, tensor))
    group['params'] = [tensor for _, tensor in unique.values()]
    names.append([name for name, _ in unique.values()])
  clean = clean_names(given)
  names = [[clean.get(name, name) for name in group] for group in names]
  counts = collections.Counter(itertools.chain.from_iterable(names))
  for name, count in counts.items():
    if count > 1:
      raise ValueError(f'Invalid params: two are named {name!r}.')
  return groups, names


def describe(
  groups: Sequence[Mapping[str, Any]], names: Sequence[Sequence[str]]
) -> list[ParameterInfo]:
  """Cut all parameters into blocks, in order.

  Raises:
    ValueError: for a parameter that is sharded or not real and dense.
  """
  infos: list[ParameterInfo] = []
  for number, group in enumerate(groups):
    for name, parameter in zip(names[number], group['params'], strict=True):
      dtype = parameter.dtype
      if not dtype.is_floating_point or dtype.itemsize < 2:
        raise ValueError(
          f'Invalid dtype {dtype} of {name!r}. Must be real floating point of '
          '16 bits or more.'
        )
      if dtensors.is_dtensor(parameter):
        raise ValueError(
          f'Invalid DTensor {name!r}. Shampoo needs whole parameters; with '
          'several ranks it shares the work under DistributedDataParallel.'
        )
      if parameter.layout != torch.strided:
        raise ValueError(
          f'Invalid layout {parameter.layout} of {name!r}. Must be dense.'
        )
      shape = parameter.shape
      diagonal = any(d >= group['diagonal_dim_threshold'] for d in shape)
      limit = (
        blocking.DIAGONAL_BLOCK_DIM
        if diagonal
        else group['max_preconditioner_dim']
      )
      merged = blocking.merge_dims(shape, limit)
      blocks = blocking.cut_blocks(merged, limit, number, len(infos), diagonal)
      infos.append(ParameterInfo(name, parameter, merged, tuple(blocks)))
  return infos


def _ordered(entries: Iterable[Any]) -> list[Any]:
  if isinstance(entries, (set, frozenset)):
    raise ValueError(
      'Invalid params: a set. Must have an order, as a list has.'
    )
  return list(entries)
