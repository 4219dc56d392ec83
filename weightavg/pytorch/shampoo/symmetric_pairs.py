"""Store two symmetric matrices in the memory of one, and multiply by them.

A factor matrix A and its inverse root X are symmetric, d x d. One d x (d + 1)
array holds both in d (d + 1) numbers: A in its lower triangle, diagonal
included, and X in the remaining entries as an upper triangle shifted by one
column. Only taking a root unpacks a whole matrix.

`SymmetricHalf` is a view of one of the two. Entries above its diagonal belong
to the other and are neither used nor changed. Products run by columns of tiles:
a tile on the diagonal is computed whole and masked, the panel below it is one
matrix product. G G^T therefore takes little more than half of the
multiplications (36 of 64 tiles at d = 1024), and multiplying by X reads each
panel twice, once transposed.
"""

import torch

# Small tiles save multiplications, large ones calls. A CPU reaches full speed
# at 128, a GPU needs more work per kernel.
_TILES = {'cpu': 128}
_OTHER_TILE = 256
# MKL takes a few columns for as many as 64 unless they are contiguous.
_THIN = 16


def new_pair(
  batch: int, dim: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
  """Allocate `batch` pairs with A = 0 and X = I."""
  storage = torch.zeros(batch, dim, dim + 1, dtype=dtype, device=device)
  storage.diagonal(offset=1, dim1=1, dim2=2).fill_(1)
  return storage


def factor_half(storage: torch.Tensor) -> 'SymmetricHalf':
  """Return A of the storage [batch, d, d + 1]."""
  return SymmetricHalf(storage[:, :, :-1])


def root_half(storage: torch.Tensor) -> 'SymmetricHalf':
  """Return X of the storage [batch, d, d + 1]."""
  return SymmetricHalf(storage[:, :, 1:].mT)


class SymmetricHalf:
  """Symmetric matrices [batch, d, d], given by a view's lower triangle.

  The views of tiles are made once, because making them in every step takes as
  long as multiplying small ones. A batch of one has no batch dimension here,
  because single products have less overhead than batched ones.

  Args:
    view: [batch, d, d], any strides.
  """

  def __init__(self, view: torch.Tensor) -> None:
    self._single = view.shape[0] == 1
    self._view = view[0] if self._single else view
    dim = view.shape[-1]
    tile = _TILES.get(view.device.type, _OTHER_TILE)
    half, whole = tile // 2, dim - dim % tile
    # A full tile on the diagonal is two triangles of half its size and the
    # square below the first one. The smaller last tile is one triangle.
    self._triangles: list[tuple[int, int, torch.Tensor]] = []
    self._squares: list[tuple[int, int, torch.Tensor]] = []
    if whole:
      squares = self._every(tile, 0, whole, half, half)
      self._triangles.append((0, whole, self._every(half, 0, whole, half, 0)))
      self._squares.append((0, whole, squares))
    if whole < dim:
      last = self._every(dim - whole, whole, dim, dim - whole, 0)
      self._triangles.append((whole, dim, last))
    self._panels = [
      (stop - tile, stop, self._view[..., stop:, stop - tile : stop])
      for stop in range(tile, dim, tile)
    ]

  def _every(
    self, step: int, start: int, stop: int, size: int, below: int
  ) -> torch.Tensor:
    """Return the squares `below` rows under the diagonal, every `step` rows."""
    *batch, row, column = self._view.stride()
    return self._view.as_strided(
      (*self._view.shape[:-2], (stop - start) // step, size, size),
      (*batch, step * (row + column), row, column),
      self._view.storage_offset() + start * (row + column) + below * row,
    )

  def unpack(self) -> torch.Tensor:
    """Return the full matrices, a new tensor [batch, d, d]."""
    lower = torch.tril(self._view)
    full = lower + torch.tril(self._view, -1).mT
    return full.unsqueeze(0) if self._single else full

  def add_gram(self, rows: torch.Tensor, keep: float, add: float) -> None:
    """matrix <- keep * matrix + add * rows rows^T, in place.

    Args:
      rows: [batch, d, k], any strides.
      keep: factor of the old matrix, 1 - add or 1.
      add: factor of the product.
    """
    rows = rows[0] if self._single else rows
    for start, stop, tiles in self._triangles:
      part = rows[..., start:stop, :].unflatten(-2, tiles.shape[-3:-1])
      product = part @ part.mT
      weights = _lower_weights(tiles.shape[-1], add, tiles)
      if keep == 1:
        tiles.addcmul_(product, weights)
      else:
        tiles.lerp_(product, weights)
    for start, stop, tiles in self._squares:
      upper, lower = _alternate(rows[..., start:stop, :], tiles)
      product = lower @ upper.mT
      if keep == 1:
        tiles.add_(product, alpha=add)
      else:
        tiles.lerp_(product, add)
    for start, stop, panel in self._panels:
      update = panel.addmm_ if self._single else panel.baddbmm_
      update(
        rows[..., stop:, :],
        rows[..., start:stop, :].mT,
        beta=keep,
        alpha=add,
      )

  def multiply(self, right: torch.Tensor) -> torch.Tensor:
    """Multiply by the matrices from the left.

    Args:
      right: [batch, d, k], any strides.

    Returns:
      [batch, d, k], laid out as `right`.
    """
    result = torch.empty_like(right)
    if _is_thin(right):
      # Both transposed in memory: copies of d x k numbers, beside d x d read.
      rows = right.mT.contiguous().mT
      return result.copy_(self._multiply(rows, torch.empty_like(rows)))
    return self._multiply(right, result)

  def _multiply(
    self, right: torch.Tensor, result: torch.Tensor
  ) -> torch.Tensor:
    """Write the product to `result`, and return it."""
    out = result[0] if self._single else result
    right = right[0] if self._single else right
    for start, stop, tiles in self._triangles:
      shape = tiles.shape[-3:-1]
      part = right[..., start:stop, :].unflatten(-2, shape)
      target = out[..., start:stop, :].unflatten(-2, shape)
      lower = _lower_mask(tiles.shape[-1], tiles.device)
      full = torch.where(lower, tiles, tiles.mT)
      if self._single:
        torch.bmm(full, part, out=target)
      else:
        target.copy_(full @ part)
    for start, stop, tiles in self._squares:
      upper, lower = _alternate(right[..., start:stop, :], tiles)
      out_upper, out_lower = _alternate(out[..., start:stop, :], tiles)
      if self._single:
        out_upper.baddbmm_(tiles.mT, lower)
        out_lower.baddbmm_(tiles, upper)
      else:
        out_upper.add_(tiles.mT @ lower)
        out_lower.add_(tiles @ upper)
    for start, stop, panel in self._panels:
      above, below = right[..., start:stop, :], right[..., stop:, :]
      out_above, out_below = out[..., start:stop, :], out[..., stop:, :]
      if self._single:
        out_above.addmm_(panel.mT, below)
        out_below.addmm_(panel, above)
      else:
        out_above.baddbmm_(panel.mT, below)
        out_below.baddbmm_(panel, above)
    return result


def _is_thin(right: torch.Tensor) -> bool:
  """Return True where a CPU multiplies faster by the transposed columns."""
  return right.device.type == 'cpu' and 1 < right.shape[-1] < _THIN


def _alternate(
  rows: torch.Tensor, tiles: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
  """Return the rows above the squares and the rows at their height."""
  count, size = tiles.shape[-3:-1]
  turns = rows.unflatten(-2, (count, 2, size))
  return turns[..., 0, :, :], turns[..., 1, :, :]


# A schedule of beta2 has a value for each step.
_MOST_WEIGHTS = 64
_weights: dict[tuple, torch.Tensor] = {}


def _lower_weights(size: int, value: float, like: torch.Tensor) -> torch.Tensor:
  """Return `value` on and below the diagonal, 0 above; cached."""
  key = (size, value, like.dtype, like.device)
  found = _weights.get(key)
  if found is None:
    full = torch.full((size, size), value, dtype=like.dtype, device=like.device)
    found = full.tril_()
    if len(_weights) >= _MOST_WEIGHTS:
      _weights.clear()
    _weights[key] = found
  return found


def _lower_mask(size: int, device: torch.device) -> torch.Tensor:
  """Return True on and below the diagonal; cached."""
  key = (size, device)
  found = _weights.get(key)
  if found is None:
    ones = torch.ones(size, size, dtype=torch.bool, device=device)
    found = _weights[key] = ones.tril_()
  return found
