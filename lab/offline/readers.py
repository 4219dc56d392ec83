"""Read checkpoints as named tensors.

Formats: checkpoints of AlgoPerf and of this laboratory, PyTorch files (a state
dict, or one nested under a key), and safetensors (one file, shards with an
index, or a directory of either, as Hugging Face writes them). Tensors are read
on request. `torch.load` loads weights only.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from lab.core import checksums, torch_files
from lab.core.errors import InputError
from weightavg.pytorch.models import clean_name, clean_names

# Keys of a state dict in a PyTorch file, in the order of the search.
KEYS = ('model_params', 'state_dict', 'model_state_dict', 'model', 'module')
# Files in a directory, in the order of the search.
_IN_DIRECTORY = (
  'model.safetensors.index.json',
  'model.safetensors',
  'pytorch_model.bin.index.json',
  'pytorch_model.bin',
)


class Spec(NamedTuple):
  """Shape and dtype of a tensor."""

  shape: tuple[int, ...]
  dtype: torch.dtype


class _Stored(NamedTuple):
  """Position of a tensor in an open file."""

  file: int
  offset: int
  spec: Spec


def _spec(found: Any) -> Spec:
  if isinstance(found, Tensor):
    return Spec(tuple(found.shape), found.dtype)
  return found.spec


class Checkpoint:
  """The named tensors of one checkpoint, open until `close`.

  Args:
    path: a file or a directory.
    key: dotted path of the state dict inside PyTorch files, '.' for the file's
      own content; None searches the usual keys.
    evaluated: checkpoints of this package's submissions contain the evaluated
      average and the raw weights. True reads the average, False the raw
      weights.

  Attributes:
    layout: name to shape and dtype, sorted by name; tied tensors once.
    ties: further name of a tied tensor to its name in `layout`.

  Raises:
    InputError: the file cannot be read or holds no tensors.
  """

  def __init__(
    self, path: str, key: str | None = None, evaluated: bool = False
  ) -> None:
    self.path = path
    self._files = contextlib.ExitStack()
    self._tensors: dict[str, Any] = {}
    self.ties: dict[str, str] = {}
    self.layout: dict[str, Spec] = {}
    try:
      self._open(file_of(path), key, evaluated)
    except InputError:
      self.close()
      raise
    except Exception as error:
      # The zip reader, the unpickler and the JSON parser raise different errors
      # for corrupt files.
      self.close()
      raise InputError(f'Cannot read {path}: {_reason(error)}') from error

  def tensor(self, name: str) -> Tensor:
    """Return a tensor by its name in `layout`."""
    spec = self.layout[name]
    count = torch.Size(spec.shape).numel()
    scratch = torch.empty(count * spec.dtype.itemsize, dtype=torch.uint8)
    return self.values(name, 0, count, scratch).reshape(spec.shape)

  def values(self, name: str, begin: int, end: int, scratch: Tensor) -> Tensor:
    """Return the elements begin..end of a flattened tensor.

    Args:
      name: name in `layout`.
      begin: index of the first element.
      end: index after the last element.
      scratch: byte buffer that may hold the result; at least as large.
    """
    found = self._tensors[name]
    if isinstance(found, Tensor):
      return found.reshape(-1)[begin:end]
    # Read, not mapped: a page fault costs more than copying the page.
    width = found.spec.dtype.itemsize
    part = scratch[: (end - begin) * width]
    target = memoryview(part.numpy().data)
    offset = found.offset + begin * width
    while target:
      try:
        count = os.preadv(found.file, [target], offset)
      except OSError as error:
        raise InputError(f'Cannot read {self.path}: {error}.') from error
      if not count:
        raise InputError(f'Cannot read {self.path}: it has been truncated.')
      target, offset = target[count:], offset + count
    return part.view(found.spec.dtype)

  def close(self) -> None:
    """Close the files and release their mappings."""
    self._tensors = {}
    self._files.close()

  def __enter__(self) -> 'Checkpoint':
    return self

  def __exit__(self, *args: object) -> None:
    self.close()

  def _open(self, path: str, key: str | None, evaluated: bool) -> None:
    self._read(path, key, evaluated)
    # Not before: an index has the names as they are in its shards.
    self._clean_names()
    self.layout = {
      name: _spec(self._tensors[name]) for name in sorted(self._tensors)
    }
    if not self.layout:
      raise InputError(f'Cannot use {self.path}: it holds no tensors.')
    for name, spec in self.layout.items():
      if spec.dtype.is_floating_point and spec.dtype.itemsize == 1:
        raise InputError(
          f'Cannot use {self.path}: {name!r} is {spec.dtype}. Weights of 8 '
          'bits have scales of their own and are not averaged.'
        )

  def _read(self, path: str, key: str | None, evaluated: bool) -> None:
    if path.endswith('.index.json'):
      shards = _shards(path)
      for shard in sorted(set(shards.values())):
        _check_shard(path, shard)
        self._read(os.path.join(os.path.dirname(path), shard), key, evaluated)
      missing = set(shards) - set(self._tensors) - set(self.ties)
      if missing:
        raise InputError(
          f'Cannot read {path}: its shards lack {sorted(missing)[0]!r}.'
        )
    elif not checksums.matches(path):
      raise InputError(f'Cannot read {path}: it does not match its checksum.')
    elif path.endswith('.safetensors'):
      self._add_safetensors(path)
    else:
      self._add_torch(path, key, evaluated)

  def _add_safetensors(self, path: str) -> None:
    with safe_open(path, 'pt') as file:  # checks the header and the length
      names = set(file.keys())
      metadata = file.metadata() or {}
    descriptor = os.open(path, os.O_RDONLY)
    self._files.callback(os.close, descriptor)
    length = int.from_bytes(os.pread(descriptor, 8, 0), 'little')
    header = json.loads(os.pread(descriptor, length, 8))
    for name in names:
      entry = header[name]
      spec = Spec(tuple(entry['shape']), DTYPES[entry['dtype']])
      offset = 8 + length + entry['data_offsets'][0]
      self._tensors[name] = _Stored(descriptor, offset, spec)
    # safetensors.torch.save_model writes a tied tensor once, and its other
    # names into the metadata.
    for name, first in metadata.items():
      if first in names and name not in names:
        self.ties[name] = first

  def _add_torch(self, path: str, key: str | None, evaluated: bool) -> None:
    content = load(path)
    state = dict(_state_dict(content, path, key))
    if not evaluated:
      state |= _raw_weights(content, state)
    first: dict[tuple, str] = {}
    for name, value in state.items():
      if isinstance(value, bool | int | float):
        # A counter that is not a tensor: kept, like integer tensors.
        value = torch.tensor(value)
      if not isinstance(value, Tensor):
        continue
      _check_tensor(path, str(name), value)
      place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
      if value.numel() and place in first:
        self.ties[str(name)] = first[place]
      else:
        first[place] = str(name)
        self._tensors[str(name)] = value.detach()

  def _clean_names(self) -> None:
    """Remove the prefixes of DistributedDataParallel and torch.compile."""
    names = [*self._tensors, *self.ties]
    clean = clean_names(names)
    if len(set(clean.values())) < len(names):
      raise InputError(
        f'Cannot use {self.path}: two tensors have the same name without '
        "'module.' and '_orig_mod.'."
      )
    self._tensors = {clean[n]: t for n, t in self._tensors.items()}
    self.ties = {clean[n]: clean[first] for n, first in self.ties.items()}


DTYPES = {
  'F64': torch.float64,
  'F32': torch.float32,
  'F16': torch.float16,
  'BF16': torch.bfloat16,
  'F8_E4M3': torch.float8_e4m3fn,
  'F8_E5M2': torch.float8_e5m2,
  'C64': torch.complex64,
  'I64': torch.int64,
  'I32': torch.int32,
  'I16': torch.int16,
  'I8': torch.int8,
  'U64': torch.uint64,
  'U32': torch.uint32,
  'U16': torch.uint16,
  'U8': torch.uint8,
  'BOOL': torch.bool,
}


def _reason(error: BaseException) -> str:
  text = ' '.join(str(error).split()) or 'no reason given'
  text = text if len(text) <= 160 else f'{text[:157]}...'
  return (
    f'truncated, corrupt or of another kind ({type(error).__name__}: {text})'
  )


def file_of(path: str) -> str:
  """Return the file of a checkpoint that may be a directory.

  Raises:
    InputError: the directory holds no file of a known name.
  """
  if not os.path.isdir(path):
    return path
  for name in _IN_DIRECTORY:
    if os.path.exists(os.path.join(path, name)):
      return os.path.join(path, name)
  raise InputError(
    f'Cannot use the directory {path}: must hold one of '
    f'{", ".join(_IN_DIRECTORY)}. A folder of checkpoints is {path}/*.'
  )


def files_of(path: str) -> set[str]:
  """Real paths of a checkpoint: file or directory, and what an index names."""
  found = {os.path.realpath(path)}
  with contextlib.suppress(Exception):  # reading it gives the reason
    file = file_of(path)
    found.add(os.path.realpath(file))
    if file.endswith('.index.json'):
      folder = os.path.dirname(file)
      found.add(os.path.realpath(folder))
      shards = _shards(file).values()
      found |= {os.path.realpath(os.path.join(folder, s)) for s in shards}
  return found


def _shards(index: str) -> dict[str, Any]:
  """Return the shard of each tensor, as the file says."""
  with open(index, encoding='utf-8') as file:
    return json.load(file)['weight_map']


def _check_shard(index: str, shard: Any) -> None:
  """Refuse what is not the name of a file in the index's folder."""
  if (
    not isinstance(shard, str)
    or os.path.basename(shard) != shard
    or shard.endswith('.index.json')
    or '\0' in shard
  ):
    raise InputError(
      f'Cannot use {index}: invalid shard {str(shard)[:80]!r}. Must be a file '
      'name in the same folder.'
    )


def _check_tensor(path: str, name: str, tensor: Tensor) -> None:
  """Refuse a tensor whose elements are not all in the file."""
  is_plain = tensor.layout == torch.strided and tensor.device.type == 'cpu'
  if not is_plain or tensor.is_quantized:
    raise InputError(f'Cannot use {path}: {name!r} is not a dense tensor.')
  # One that repeats its elements would take any memory once it is copied.
  if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
    raise InputError(f'Cannot use {path}: {name!r} repeats its elements.')


def load(path: str) -> Any:
  """Load a PyTorch file without running code; its tensors are mapped."""
  # Metrics in checkpoints are often NumPy scalars: data without code.
  with torch.serialization.safe_globals(_numpy_scalars()):
    return _load_weights(path)


def _numpy_scalars() -> list[Any]:
  kinds = (np.bool_, np.int32, np.int64, np.float16, np.float32, np.float64)
  scalar = np.float64(0).__reduce__()[0]
  return [scalar, np.dtype, *(type(np.dtype(kind)) for kind in kinds)]


def _load_weights(path: str) -> Any:
  try:
    return torch_files.load(path, map_location='cpu', mmap=True)
  except RuntimeError as error:
    if 'mmap can only be used' not in str(error):
      raise
    # Files of torch < 1.6 are not zip archives and cannot be mapped.
    return torch_files.load(path, map_location='cpu')
  except Exception as error:
    if 'weights_only' in str(error).lower() or 'Weights only' in str(error):
      raise InputError(
        f'Refused to read {path}: it holds pickled code or objects, not '
        'tensors alone (torch.load(weights_only=True)).'
      ) from error
    raise


def _is_state_dict(value: Any) -> bool:
  return isinstance(value, Mapping) and any(
    isinstance(v, Tensor) for v in value.values()
  )


def _count_weights(value: Any) -> int:
  """Number of floating-point tensors that a mapping itself has."""
  values = value.values() if isinstance(value, Mapping) else ()
  return sum(isinstance(v, Tensor) and v.is_floating_point() for v in values)


def _state_dict(content: Any, path: str, key: str | None) -> Mapping:
  if key is not None:
    found = content
    for part in key.split('.') if key != '.' else ():
      found = found.get(part) if isinstance(found, Mapping) else None
    if not _is_state_dict(found):
      raise InputError(f'Cannot use {path}: it has no state dict at {key!r}.')
    return found
  if isinstance(content, Mapping):
    for name in KEYS:
      if _is_state_dict(content.get(name)):
        return content[name]
    # {'step': tensor, 'params': {...}} is none: --key names the inner one.
    weights = max(1, _count_weights(content))
    if _is_state_dict(content) and not any(
      _count_weights(value) >= weights for value in content.values()
    ):
      return content
  known = sorted(map(str, content)) if isinstance(content, Mapping) else []
  raise InputError(
    f'Cannot use {path}: no state dict at the top or under {", ".join(KEYS)}. '
    f'Name it by --key; there are {", ".join(known[:8]) or "no keys"}.'
  )


def _raw_weights(content: Any, state: Mapping) -> dict[str, Tensor]:
  """Return the raw weights of a run that was saved with its average shown."""
  with contextlib.suppress(KeyError, TypeError, AttributeError):
    averager = content['optimizer_state']['averager']
    if averager['swapped']:
      names = {_bare(name): name for name in state}
      return {names[_bare(n)]: t for n, t in averager['raw'].items()}
  return {}


def _bare(name: str) -> str:
  return clean_name(re.sub(r'^(_orig_mod\.)?(module\.)?', '', name))
