"""Checks of saved states that the averager, Shampoo and exports share."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_fields(
  state: Mapping[str, Any],
  kinds: Mapping[str, type],
  subject: str,
  least: Mapping[str, int] | None = None,
) -> None:
  """Raise ValueError for a missing field, or one of another type.

  Args:
    state: as it was loaded.
    kinds: the type of each field. A bool is no int, and the reverse.
    subject: first words of the messages, such as 'averager state'.
    least: smallest values of integers; 0 for those that are not named.
  """
  for key, kind in kinds.items():
    value = state.get(key)
    smallest = (least or {}).get(key, 0)
    is_too_small = isinstance(value, int) and value < smallest
    if type(value) is not kind or is_too_small:
      raise ValueError(
        f'Invalid {subject}: {key}={value!r}. Must be {kind.__name__}.'
      )


def check_tensors(
  found: Mapping[str, Any],
  shapes: Mapping[str, torch.Size | None],
  subject: str,
) -> None:
  """Raise ValueError for tensors of other names or shapes.

  Args:
    found: values by name.
    shapes: the shapes that they must have; None for values that must be no
      tensors, such as a module's extra state.
    subject: first words of the messages, such as 'averager state'.
  """
  for name in sorted(shapes.keys() ^ found.keys()):
    where = 'lacks' if name in shapes else 'has the unknown'
    raise ValueError(f'Invalid {subject}: it {where} tensor {name!r}.')
  for name, shape in shapes.items():
    value = found[name]
    if isinstance(value, Tensor) == (shape is None):
      raise ValueError(
        f'Invalid {subject}: {name!r} is a {type(value).__name__}. Must be '
        f'{"no" if shape is None else "a"} tensor.'
      )
    if shape is not None and value.shape != shape:
      raise ValueError(
        f'Invalid {subject}: {name!r} has shape {tuple(value.shape)}. Must be '
        f'{tuple(shape)}.'
      )
