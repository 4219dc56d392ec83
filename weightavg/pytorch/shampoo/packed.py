"""Two symmetric matrices in the memory of one, and products in that layout.

A factor matrix A and its inverse root X are symmetric, d x d. Storage is a
d x (d + 1) array whose lower triangle (with the diagonal) is A's and whose
remaining entries, shifted by one column, are X's upper triangle: d (d + 1)
numbers for both, and neither is ever unpacked as a whole in a step.

`factor_half` and `root_half` are views of that array, [batch, d, d], in which
only the lower triangle belongs to the matrix; all functions here take such a
view and leave its strict upper triangle alone. Work goes tile column by tile
column: tiles on the diagonal are computed whole and masked, the panel below
one is a single matrix product. So the product of G with its own transpose takes
little more than half of the multiplications (36 of 64 tiles at d = 1024).
"""

from collections.abc import Iterator

import torch

# Small tiles save multiplications, large ones calls; on a CPU products run at
# full speed from 128 on, a GPU wants more work per kernel.
_TILES = {'cpu': 128}
_OTHER_TILE = 256


def new_pair(
  batch: int, dim: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
  """Storage of `batch` pairs: A = 0, X = identity."""
  storage = torch.zeros(batch, dim, dim + 1, dtype=dtype, device=device)
  storage.diagonal(offset=1, dim1=1, dim2=2).fill_(1)
  return storage


def factor_half(storage: torch.Tensor) -> torch.Tensor:
  """A in the lower triangle of a [batch, d, d] view."""
  return storage[:, :, :-1]


def root_half(storage: torch.Tensor) -> torch.Tensor:
  """X in the lower triangle of a [batch, d, d] view."""
  return storage[:, :, 1:].mT


def unpack(half: torch.Tensor) -> torch.Tensor:
  """The full symmetric matrices, a new tensor."""
  lower = torch.tril(half)
  return lower + torch.tril(half, -1).mT


def add_gram(
  half: torch.Tensor, rows: torch.Tensor, keep: float, add: float
) -> None:
  """half <- keep * half + add * rows rows^T, in place.

  Args:
    half: [batch, d, d], lower triangle.
    rows: [batch, d, k], any strides.
    keep: factor of the old matrix; 0 ignores its values, even NaN.
    add: factor of the product.
  """
  dim = half.shape[1]
  for tiles, start, stop in _diagonal_tiles(half):
    count, size = tiles.shape[1:3]
    part = rows[:, start:stop].unflatten(1, (count, size))
    product = part @ part.mT
    if add != 1:
      product.mul_(add)
    if keep != 0:
      product.add_(tiles, alpha=keep)
    mask = _lower_mask(size, half.device)
    torch.where(mask, product, tiles, out=tiles)
  for start, stop in _panels(dim, half.device):
    half[:, stop:, start:stop].baddbmm_(
      rows[:, stop:], rows[:, start:stop].mT, beta=keep, alpha=add
    )


def multiply(half: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
  """The symmetric matrices times `right`.

  Args:
    half: [batch, d, d], lower triangle.
    right: [batch, d, k], any strides.

  Returns:
    [batch, d, k], laid out as `right`.
  """
  out = torch.empty_like(right)
  dim = half.shape[1]
  for tiles, start, stop in _diagonal_tiles(half):
    shape = tiles.shape[1:3]
    part = right[:, start:stop].unflatten(1, shape)
    out[:, start:stop].unflatten(1, shape).copy_(unpack(tiles) @ part)
  for start, stop in _panels(dim, half.device):
    panel = half[:, stop:, start:stop]
    out[:, start:stop].baddbmm_(panel.mT, right[:, stop:])
    out[:, stop:].baddbmm_(panel, right[:, start:stop])
  return out


def _tile(device: torch.device) -> int:
  return _TILES.get(device.type, _OTHER_TILE)


def _panels(dim: int, device: torch.device) -> Iterator[tuple[int, int]]:
  """Column ranges that have rows below their diagonal tile."""
  tile = _tile(device)
  for stop in range(tile, dim, tile):
    yield stop - tile, stop


def _diagonal_tiles(
  half: torch.Tensor,
) -> Iterator[tuple[torch.Tensor, int, int]]:
  """Views [batch, count, size, size] of the diagonal tiles, and their rows.

  One view of all full tiles, then one of the smaller last tile, if any.
  """
  batch, dim, _ = half.shape
  tile = _tile(half.device)
  step, row, column = half.stride()
  whole = dim - dim % tile
  for start, stop, size in ((0, whole, tile), (whole, dim, dim - whole)):
    if start == stop:
      continue
    count = (stop - start) // size
    yield (
      half.as_strided(
        (batch, count, size, size),
        (step, size * (row + column), row, column),
        half.storage_offset() + start * (row + column),
      ),
      start,
      stop,
    )


_masks: dict[tuple[int, torch.device], torch.Tensor] = {}


def _lower_mask(size: int, device: torch.device) -> torch.Tensor:
  key = (size, device)
  if key not in _masks:
    ones = torch.ones(size, size, dtype=torch.bool, device=device)
    _masks[key] = ones.tril_()
  return _masks[key]
