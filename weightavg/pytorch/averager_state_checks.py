"""Checks of a saved averager before it is loaded."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from weightavg.pytorch.choice import RAW
from weightavg.pytorch.models import RUNNING_STATISTICS
from weightavg.pytorch.saved_state import check_fields, check_tensors
from weightavg.sampling import Sampling
from weightavg.schemes import Raw, Scheme

FORMAT = 2
# First words of the messages.
SUBJECT = 'averager state'
_KINDS: dict[str, type] = {
  'recipe': dict,
  'step': int,
  'samples': int,
  'skipped': int,
  'selected': int,
  'swapped': bool,
  'complete': bool,
  'buffers': list,
  'raw': dict,
}


def recipe(
  scheme: Scheme, sampling: Sampling, batch_norm: str, interpolation: float
) -> dict[str, Any]:
  """The settings in which two averagers must agree to share a state."""
  found: dict[str, Any] = {
    'averaging_scheme': scheme.name,
    'averaging_batch_norm': batch_norm,
  }
  if isinstance(scheme, Raw):
    return found
  if interpolation:
    found['averaging_interpolation'] = interpolation
  if scheme.part_names:
    found['candidates'] = [str(part) for part in scheme.parts]
  else:
    found |= numbers(scheme)
  return found | dataclasses.asdict(sampling)


def numbers(scheme: Scheme) -> dict[str, Any]:
  """The fields of a scheme that are set."""
  fields = dataclasses.asdict(scheme).items()
  return {name: value for name, value in fields if value is not None}


def check(
  state_dict: dict[str, Any],
  scheme: Scheme,
  own_recipe: Mapping[str, Any],
  shapes: Mapping[str, torch.Size],
  live_statistics: Mapping[str, Tensor],
) -> None:
  """Raise ValueError for a state of another averager or model.

  Args:
    state_dict: from `Averager.state_dict`.
    scheme: of the averager that is to load it.
    own_recipe: of that averager.
    shapes: of its weights, by name.
    live_statistics: running statistics and counts of its model, by name.
  """
  candidates = len(scheme.parts)
  if not isinstance(state_dict, Mapping):
    raise ValueError(
      f'Invalid averager state: a {type(state_dict).__name__}. Must be a dict.'
    )
  if state_dict.get('format') != FORMAT:
    raise ValueError(
      f'Invalid averager state: format {state_dict.get("format")!r}. Must be '
      f'{FORMAT}. import_state() takes the states of other libraries.'
    )
  check_fields(state_dict, _KINDS, SUBJECT, {'selected': RAW})
  if not state_dict['complete']:
    raise ValueError(
      'Invalid averager state: it was saved without the shares of the other '
      'ranks. Save on rank 0, right after swap_in() on all ranks and with '
      'checkpoints=True (averaging_checkpoints).'
    )
  has_statistics = any(
    name.endswith(RUNNING_STATISTICS)
    for names in (shapes, *state_dict['buffers'])
    for name in names
  )
  for key in state_dict['recipe'] | dict(own_recipe):
    saved, own = state_dict['recipe'].get(key), own_recipe.get(key)
    if key == 'averaging_batch_norm' and not has_statistics:
      continue  # either kind is the same
    if saved != own:
      raise ValueError(
        f'Invalid averager state: saved with {key}={saved!r}, this averager '
        f'has {key}={own!r}. Must be built with the same arguments, '
        'total_steps among them.'
      )
  # Not in states of earlier versions.
  optional = {'chosen': int, 'choice_is_made': bool}
  given = {key: kind for key, kind in optional.items() if key in state_dict}
  check_fields(state_dict, given, SUBJECT, {'chosen': RAW})
  for key in {'selected', 'chosen'} & state_dict.keys():
    if state_dict[key] >= candidates:
      raise ValueError(
        f'Invalid averager state: {key}={state_dict[key]}. Must be below '
        f'{candidates}.'
      )
  if 'averaging_interpolation' in own_recipe:
    _check_weighting(state_dict.get('weighting'))
    # Not in states of earlier versions; nothing to keep without a model.
    if 'statistics' in state_dict and live_statistics:
      if not isinstance(state_dict['statistics'], dict):
        raise ValueError('Invalid averager state: statistics. Must be a dict.')
      check_tensors(
        state_dict['statistics'],
        {name: tensor.shape for name, tensor in live_statistics.items()},
        SUBJECT,
      )
  groups = list(state_dict['buffers'])
  stored = scheme.stored(state_dict['samples'])
  if len(groups) != stored:
    raise ValueError(
      f'Invalid averager state: {len(groups)} buffers for '
      f'{state_dict["samples"]} samples. Must be {stored}.'
    )
  if state_dict['swapped']:
    groups.append(state_dict['raw'])
  for named in groups:
    check_tensors(named, shapes, SUBJECT)
  _check_counters(state_dict.get('counters', {}))


def _check_counters(value: Any) -> None:
  """Counts of batches that the swap back restores."""
  if not isinstance(value, dict) or not all(
    isinstance(t, Tensor) and t.ndim == 0 for t in value.values()
  ):
    raise ValueError(
      f'Invalid averager state: counters={value!r}. Must hold tensors without '
      'dimensions.'
    )


def _check_weighting(value: Any) -> None:
  names = {'total', 'largest_rate'}
  if (
    not isinstance(value, dict)
    or value.keys() != names
    or not all(isinstance(v, float) and v >= 0.0 for v in value.values())
  ):
    raise ValueError(
      f'Invalid averager state: weighting={value!r}. Must hold the numbers '
      'total and largest_rate.'
    )
