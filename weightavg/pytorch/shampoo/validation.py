"""Check hyperparameters; errors name the argument, its value and its range."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from weightavg.config_fields import plain
from weightavg.pytorch.shampoo.grafting import GRAFTINGS

_OF_ALL_GROUPS = {
  'communicate_params',
  'communication_dtype',
  'num_trainers_per_group',
  'preconditioner_dtype',
  'process_group',
  'skip_nonfinite_gradients',
}


def with_plain_numbers(group: Mapping[str, Any]) -> dict[str, Any]:
  """Return a parameter group with Python's numbers in the place of NumPy's."""
  return {name: _with_plain_numbers(value) for name, value in group.items()}


def _with_plain_numbers(value: Any) -> Any:
  if isinstance(value, tuple):
    return tuple(map(plain, value))
  return list(map(plain, value)) if isinstance(value, list) else plain(value)


def check_group(group: Mapping[str, Any]) -> None:
  """Raise ValueError for the first value out of range in a parameter group."""
  _number(group, 'lr', 0, math.inf, '[0, inf)')
  betas = group['betas']
  if not isinstance(betas, (tuple, list)) or len(betas) != 2:
    raise ValueError(f'Invalid betas={betas!r}. Must be two numbers.')
  if not (_is_number(betas[0]) and 0 <= betas[0] < 1):
    raise ValueError(f'Invalid betas[0]={betas[0]!r}. Must be in [0, 1).')
  if not (_is_number(betas[1]) and 0 < betas[1] <= 1):
    raise ValueError(f'Invalid betas[1]={betas[1]!r}. Must be in (0, 1].')
  _number(group, 'epsilon', 0, math.inf, '(0, inf)', open_below=True)
  _number(group, 'grafting_epsilon', 0, math.inf, '[0, inf)')
  _number(group, 'momentum', 0, 1, '[0, 1)')
  _number(group, 'weight_decay', 0, math.inf, '[0, inf)')
  _number(group, 'exponent_multiplier', 0, math.inf, '(0, inf)', True)
  beta = group['grafting_beta2']
  if beta is not None and not (_is_number(beta) and 0 < beta <= 1):
    raise ValueError(
      f'Invalid grafting_beta2={beta!r}. Must be in (0, 1] or None.'
    )
  for name in (
    'max_preconditioner_dim',
    'precondition_frequency',
    'diagonal_dim_threshold',
  ):
    _integer(group, name, 1)
  _check_override(group['inv_root_override'])
  if group['grafting'] not in GRAFTINGS:
    raise ValueError(
      f'Invalid grafting={group["grafting"]!r}. Must be one of {GRAFTINGS}.'
    )
  for name in (
    'use_nadam',
    'use_nesterov',
    'use_decoupled_weight_decay',
    'spread_roots',
  ):
    check_bool(name, group[name])
  _integer(group, 'step', 0)


def check_start(group: Mapping[str, Any]) -> None:
  """Raise ValueError for a T0 that F exceeds, as it may do in later steps."""
  start = group['start_preconditioning_step']
  frequency = group['precondition_frequency']
  if start == -1:
    return
  if not isinstance(start, int) or isinstance(start, bool) or start < frequency:
    raise ValueError(
      f'Invalid start_preconditioning_step={start!r}. Must be -1 or an '
      f'integer >= precondition_frequency={frequency}.'
    )


def check_names(group: Mapping[str, Any]) -> None:
  """Raise ValueError for an argument that a group cannot have of its own."""
  for name in _OF_ALL_GROUPS & group.keys():
    raise ValueError(
      f'Invalid {name} of a parameter group. Must be given to the constructor, '
      'for all groups.'
    )


def check_bool(name: str, value: Any) -> None:
  """Raise ValueError for anything but True and False."""
  if not isinstance(value, bool):
    raise ValueError(f'Invalid {name}={value!r}. Must be a bool.')


def check_dtypes(
  preconditioner_dtype: torch.dtype, communication_dtype: torch.dtype | None
) -> None:
  """Raise ValueError for a dtype that the optimizer cannot work in."""
  if preconditioner_dtype not in (torch.float32, torch.float64):
    raise ValueError(
      f'Invalid preconditioner_dtype={preconditioner_dtype}. '
      'Must be torch.float32 or torch.float64.'
    )
  if communication_dtype is not None and not (
    isinstance(communication_dtype, torch.dtype)
    and communication_dtype.is_floating_point
    and communication_dtype.itemsize > 1
  ):
    raise ValueError(
      f'Invalid communication_dtype={communication_dtype!r}. '
      'Must be a floating-point torch.dtype of 16 bits or more, or None.'
    )


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(
  group: Mapping[str, Any],
  name: str,
  low: float,
  high: float,
  interval: str,
  open_below: bool = False,
) -> None:
  value = group[name]
  is_scalar = isinstance(value, torch.Tensor) and value.numel() == 1
  if is_scalar and name == 'lr' and not value.is_complex():
    value = float(value)
  good = _is_number(value) and low <= value < high
  if not good or (open_below and value == low):
    raise ValueError(f'Invalid {name}={value!r}. Must be in {interval}.')


def _integer(group: Mapping[str, Any], name: str, low: int) -> None:
  value = group[name]
  if not isinstance(value, int) or isinstance(value, bool) or value < low:
    raise ValueError(f'Invalid {name}={value!r}. Must be an integer >= {low}.')


def _check_override(override: Any) -> None:
  values = override if isinstance(override, (list, tuple)) else [override]
  low = 1 if isinstance(override, (list, tuple)) else 0
  for index, value in enumerate(values):
    # Index 0 of a list is unused: order-0 parameters become vectors.
    bound = 0 if isinstance(override, (list, tuple)) and index == 0 else low
    good = isinstance(value, int) and not isinstance(value, bool)
    if not good or value < bound:
      raise ValueError(
        f'Invalid inv_root_override={override!r}. Must be an integer >= 0 '
        'or a list of integers >= 1, one for each order from 0 on.'
      )
