"""Write files of tensors chunk by chunk under a temporary name.

A safetensors file is 8 bytes with the length of a JSON header, the header, and
the tensors one after the other. If all shapes are known, the values can be
written as they are computed.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor

from lab.core import atomic_files
from lab.core.errors import InputError
from lab.offline.readers import DTYPES, Spec, load

# Key of the recipe in a file's metadata.
RECIPE = 'weightavg'
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Output:
  """A safetensors or PyTorch file that appears complete or not at all.

  Args:
    path: ends in .safetensors, or in .pt, .pth or .bin for a PyTorch file
      {'state_dict': ..., 'recipe': ...}.
    layout: name to shape and dtype, in the order of the values.
    ties: further name of a tied tensor to its name in the layout.
    recipe: metadata. `finish` may replace it by one with equally long JSON, for
      values that are known only then.

  Raises:
    InputError: the file cannot be written; nothing is left of it.
  """

  def __init__(
    self,
    path: str,
    layout: Mapping[str, Spec],
    ties: Mapping[str, str],
    recipe: Mapping[str, Any],
  ) -> None:
    if not path.endswith(('.safetensors', '.pt', '.pth', '.bin')):
      raise InputError(
        f'Invalid output={path!r}. Must end in .safetensors, .pt, .pth or .bin.'
      )
    for name, spec in layout.items():
      if spec.dtype not in _NAMES:
        raise InputError(f'Cannot write {path}: {name!r} is {spec.dtype}.')
    self.path = path
    self._layout, self._ties = dict(layout), dict(ties)
    # Another command may write this file, too.
    self._temporary = atomic_files.temporary_path(path)
    self._header_bytes = len(self._header(recipe))
    with self._errors():
      self._file: IO[bytes] = open(self._temporary, 'wb')  # noqa: SIM115
      self._file.write(self._header(recipe))

  def write(self, piece: Tensor) -> None:
    """Append the next values in the layout's order and dtype."""
    with self._errors():
      self._reopen()
      self._file.write(_bytes(piece))

  def pause(self) -> None:
    """Close the file until the next values: few files may be open at once."""
    with self._errors():
      self._file.close()

  def _reopen(self) -> None:
    if self._file.closed:
      self._file = open(self._temporary, 'r+b')  # noqa: SIM115
      self._file.seek(0, os.SEEK_END)

  def finish(self, recipe: Mapping[str, Any]) -> None:
    """Move the complete file to its path."""
    header = self._header(recipe)
    assert len(header) == self._header_bytes
    with self._errors():
      self._reopen()
      self._file.seek(0)
      self._file.write(header)
      self._file.flush()
      os.fsync(self._file.fileno())
      self._file.close()
      if not self.path.endswith('.safetensors'):
        self._convert(recipe)
      os.replace(self._temporary, self.path)

  def discard(self) -> None:
    """Remove the unfinished file; a finished one stays."""
    with contextlib.suppress(OSError):
      self._file.close()
    for path in (self._temporary, f'{self._temporary}.pt'):
      with contextlib.suppress(FileNotFoundError):
        os.remove(path)

  @contextlib.contextmanager
  def _errors(self) -> Any:
    try:
      yield
    except (OSError, RuntimeError) as error:
      if hasattr(self, '_file'):
        self.discard()
      reason = getattr(error, 'strerror', None) or error
      raise InputError(f'Cannot write {self.path}: {reason}.') from error

  def _header(self, recipe: Mapping[str, Any]) -> bytes:
    metadata = {'format': 'pt', RECIPE: json.dumps(recipe)}
    content: dict[str, Any] = {'__metadata__': metadata | self._ties}
    end = 0
    for name, spec in self._layout.items():
      begin, end = end, end + _size(spec)
      content[name] = {
        'dtype': _NAMES[spec.dtype],
        'shape': list(spec.shape),
        'data_offsets': [begin, end],
      }
    header = json.dumps(content, separators=(',', ':')).encode()
    header += b' ' * (-len(header) % 8)
    return len(header).to_bytes(8, 'little') + header

  def _convert(self, recipe: Mapping[str, Any]) -> None:
    # Mapped, not loaded: torch.save then copies tensor by tensor.
    with safe_open(self._temporary, 'pt') as file:
      state = {name: file.get_tensor(name) for name in self._layout}
      # Those without elements share an address, whatever their dtypes.
      state |= {n: t.clone() for n, t in state.items() if not t.numel()}
      state |= {name: state[first] for name, first in self._ties.items()}
      content = {'state_dict': state, 'recipe': dict(recipe)}
      torch.save(content, f'{self._temporary}.pt')
      del state, content
    os.replace(f'{self._temporary}.pt', self._temporary)


def _size(spec: Spec) -> int:
  size = torch.empty((), dtype=spec.dtype).element_size()
  for length in spec.shape:
    size *= length
  return size


def _bytes(piece: Tensor) -> memoryview:
  flat = piece.detach().cpu().contiguous().reshape(-1)
  return flat.view(torch.uint8).numpy().data


def save(
  path: str,
  named: Iterable[tuple[str, Tensor]],
  recipe: Mapping[str, Any],
) -> None:
  """Write tensors to a file; tensors that share memory are written once.

  Raises:
    InputError: the file cannot be written.
  """
  tensors: dict[str, Tensor] = {}
  ties: dict[str, str] = {}
  first: dict[tuple, str] = {}
  for name, tensor in named:
    place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
    if tensor.numel() and place in first:
      ties[name] = first[place]
    else:
      first[place] = name
      tensors[name] = tensor
  layout = {n: Spec(tuple(t.shape), t.dtype) for n, t in tensors.items()}
  output = Output(path, layout, ties, recipe)
  for tensor in tensors.values():
    output.write(tensor)
  output.finish(recipe)


def is_average(path: str) -> bool:
  """True for what `lab.offline average` has written; reads no tensors."""
  recipe: Any = None
  with contextlib.suppress(Exception):  # reading it gives the reason
    if path.endswith('.safetensors'):
      with safe_open(path, 'pt') as file:
        recipe = json.loads((file.metadata() or {}).get(RECIPE, 'null'))
    elif os.path.isfile(path) and not path.endswith('.json'):
      recipe = load(path).get('recipe')
  # Light checkpoints and snapshots have recipes, too, but no inputs.
  return isinstance(recipe, Mapping) and 'inputs' in recipe
