"""An averager's state in torch.distributed.checkpoint (DCP).

Save it as one entry beside the model's and the optimizer's; `save` and
`async_save` take it as it is, each rank with its own pieces:

  dcp.save({'model': ..., 'averager': averager.state_dict()}, checkpoint_id=...)

DCP fills tensors that are there already, and a new averager has none yet, so
that loading takes the function of this module. The number of ranks may be
another one.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
  Metadata,
  TensorStorageMetadata,
)

from weightavg.pytorch.averager import Averager


def load(
  averager: Averager,
  checkpoint_id: str | None = None,
  storage_reader: dcp.StorageReader | None = None,
  key: str = 'averager',
) -> None:
  """Restore an averager from a DCP checkpoint; called by all ranks.

  The model has to be restored too, before or after.

  Args:
    averager: of the same scheme, for the same model; it may be distributed in
      another way.
    checkpoint_id: folder of the checkpoint.
    storage_reader: reads it, where it is no folder.
    key: of the averager's state in what was saved.

  Raises:
    ValueError: there is no such key, or the state is of another averager;
      nothing has been changed then.

  >>> import tempfile
  >>> from weightavg import Ema
  >>> model = torch.nn.Linear(2, 1)
  >>> averager, folder = Averager(model, Ema(0.9)), tempfile.mkdtemp()
  >>> averager.update()
  >>> _ = dcp.save(
  ...   {'averager': averager.state_dict()}, checkpoint_id=folder, no_dist=True)
  >>> restored = Averager(model, Ema(0.9))
  >>> load(restored, folder)
  >>> restored.samples
  1
  """
  if storage_reader is None:
    storage_reader = dcp.FileSystemReader(checkpoint_id or '')
  metadata = storage_reader.read_metadata()
  state = _template(metadata, key, averager)
  if not state:
    raise ValueError(
      f'Invalid {key=}. The checkpoint has {", ".join(_tops(metadata))}.'
    )
  whole = {key: state}
  with warnings.catch_warnings():
    # One process alone is a legal use, of which DCP warns.
    warnings.filterwarnings('ignore', message='torch.distributed is')
    dcp.load(whole, storage_reader=storage_reader)
  averager.load_state_dict(_filled(whole[key]))


def _paths(metadata: Metadata) -> dict[str, Sequence[Any]]:
  """Path of each entry through dictionaries and lists, by its flat name."""
  return metadata.planner_data or {
    name: (name,) for name in metadata.state_dict_metadata
  }


def _tops(metadata: Metadata) -> list[str]:
  return sorted({str(path[0]) for path in _paths(metadata).values()})


def _template(
  metadata: Metadata, key: str, averager: Averager
) -> dict[str, Any]:
  """The saved structure, with tensors like the averager's to be filled."""
  result: dict[Any, Any] = {}
  weights = averager.named_weights()
  for name, path in _paths(metadata).items():
    if path[0] != key:
      continue
    entry = metadata.state_dict_metadata[name]
    value: Any = None
    if isinstance(entry, TensorStorageMetadata):
      like = weights.get(path[-1])
      if like is None or like.shape != entry.size:
        value = torch.empty(entry.size, dtype=entry.properties.dtype)
      else:
        value = torch.empty_like(
          like, dtype=entry.properties.dtype, requires_grad=False
        )
    _insert(result, path[1:], value)
  return _with_lists(result)


def _insert(tree: dict[Any, Any], path: Sequence[Any], value: Any) -> None:
  for part in path[:-1]:
    tree = tree.setdefault(part, {})
  tree[path[-1]] = value


def _with_lists(tree: Any) -> Any:
  """Dictionaries whose keys are 0, 1, ... were lists."""
  if not isinstance(tree, dict):
    return tree
  children = {name: _with_lists(child) for name, child in tree.items()}
  if children and all(isinstance(name, int) for name in children):
    return [children[index] for index in sorted(children)]
  return children


def _filled(state: dict[str, Any]) -> dict[str, Any]:
  """The state as it was saved: DCP leaves out what is empty."""
  return {'buffers': [], 'raw': {}, 'recipe': {}, **state}
