"""Checks before a step, on which all ranks agree.

The ranks exchange the results of a step. One that stopped alone would let the
others wait, and one that stepped other parameters would send what is no result.
"""

import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from weightavg.pytorch.distributed import maxima
from weightavg.pytorch.shampoo.block_state import BlockStack
from weightavg.pytorch.shampoo.parameters import ParameterInfo

# By these the constructor has cut the blocks.
_SIZES = ('max_preconditioner_dim', 'diagonal_dim_threshold')


def block_sizes(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Return the hyperparameters by which each group's blocks are cut."""
  return [{name: group[name] for name in _SIZES} for group in groups]


def nonfinite(
  groups: Sequence[Mapping[str, Any]],
  sizes: Sequence[Mapping[str, Any]],
  stacks: Sequence[Sequence[BlockStack]],
  infos: Sequence[ParameterInfo],
  preconditioner_dtype: torch.dtype,
  everyone: dist.ProcessGroup | None,
) -> tuple[bool, list[str]]:
  """Return whether a rank's gradients are not all finite; names of this rank's.

  Args:
    groups: the parameter groups, which schedules may have changed.
    sizes: `block_sizes` of the groups by which the blocks were cut.
    stacks: this rank's state by group.
    infos: the parameters.
    preconditioner_dtype: of the factors.
    everyone: the ranks that step together; None for this one alone.

  Raises:
    ValueError: on all ranks, for a gradient or a hyperparameter that one of
      them cannot use, or gradients of other parameters on another rank.
  """
  error, names = None, []
  try:
    for group, cut, theirs in zip(groups, sizes, stacks, strict=True):
      _check_sizes(group, cut)
      for stack in theirs:
        stack.check(group)
    _check_gradients(infos)
    names = _nonfinite_gradients(infos, preconditioner_dtype)
  except ValueError as refusal:
    error = refusal
  present = [info.parameter.grad is not None for info in infos]
  digest = zlib.crc32(bytes(present))
  refused, bad, largest, smallest = maxima(
    [error is not None, bool(names), digest, -digest],
    [] if everyone is None else [everyone],
    infos[0].parameter.device,
  )
  if error is not None:
    raise error
  if refused:
    raise ValueError('Invalid step on another rank, whose message says why.')
  if largest != -smallest:
    raise ValueError(
      'Invalid gradients. Must be there for the same parameters on all ranks.'
    )
  return bool(bad), names


def _check_sizes(group: Mapping[str, Any], cut: Mapping[str, Any]) -> None:
  """Raise ValueError for a changed size: the blocks would stay as they are."""
  for name, value in cut.items():
    if group[name] != value:
      raise ValueError(
        f'Invalid {name}={group[name]!r}. Must stay {value!r}: the constructor '
        'has cut the blocks.'
      )


def _check_gradients(infos: Sequence[ParameterInfo]) -> None:
  """Raise ValueError for a sparse or complex gradient, naming the parameter."""
  for info in infos:
    gradient = info.parameter.grad
    if gradient is None:
      continue
    if gradient.layout != torch.strided:
      raise ValueError(
        f'Invalid sparse gradient of {info.name!r}. Must be dense.'
      )
    if gradient.is_complex():
      raise ValueError(
        f'Invalid complex gradient of {info.name!r}. Must be real.'
      )


def _nonfinite_gradients(
  infos: Sequence[ParameterInfo], preconditioner_dtype: torch.dtype
) -> list[str]:
  """Return the names of parameters whose gradient's norm is not finite.

  The norm covers gradients whose square overflows, which would spoil the factor
  matrices too. Takes one read of the gradients and one synchronisation.

  Args:
    infos: the parameters.
    preconditioner_dtype: of the factors, perhaps narrower than a gradient.
  """
  present = [info for info in infos if info.parameter.grad is not None]
  if not present:
    return []
  norms: list[torch.Tensor] = []
  for dtype, group in itertools.groupby(present, _gradient_dtype):
    gradients = [g for i in group if (g := i.parameter.grad) is not None]
    wide = torch.promote_types(dtype, torch.float32)
    length = torch._foreach_norm(gradients, dtype=wide)
    # Of one number the norm is no square yet.
    found = list(torch._foreach_mul(length, length))
    if torch.promote_types(wide, preconditioner_dtype) != preconditioner_dtype:
      found = [square.to(preconditioner_dtype) for square in found]
    norms += found
  device = norms[0].device
  finite = torch.stack([norm.isfinite().to(device) for norm in norms])
  if finite.all():
    return []
  return [
    info.name
    for info, good in zip(present, finite.tolist(), strict=True)
    if not good
  ]


def _gradient_dtype(info: ParameterInfo) -> torch.dtype:
  assert info.parameter.grad is not None
  return info.parameter.grad.dtype
