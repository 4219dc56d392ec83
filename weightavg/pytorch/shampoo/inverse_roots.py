"""Inverse roots of symmetric positive semidefinite matrices.

X = (A + epsilon I)^-q = Y Y^T with Y = Q diag(w^(-q/2)) and
A + epsilon I = Q diag(w) Q^T. As in AlgoPerf's winning submission, epsilon is
absolute, and a spectrum that rounding made negative is first shifted up so that
its smallest value is 0. For a 1 x 1 matrix this is (a + epsilon)^-q.
"""

import torch


def half_roots(
  matrices: torch.Tensor, exponent: float, epsilon: float
) -> tuple[torch.Tensor, list[bool], list[int]]:
  """Return the factors Y of X = Y Y^T = (matrix + epsilon I)^-exponent.

  A decomposition that fails or is not finite in the matrices' own dtype is
  repeated in float64.

  Args:
    matrices: [batch, d, d], symmetric.
    exponent: q > 0.
    epsilon: > 0, added to the spectrum.

  Returns:
    Y, [batch, d, d]; for each matrix whether its Y may be used; and the indices
    of those that were repeated.
  """
  finite = _finite(matrices)
  if matrices.shape[-1] == 1:
    roots = (matrices + epsilon) ** (-exponent / 2)
    return roots, (finite & _finite(roots.square())).tolist(), []
  # One NaN must not fail the decomposition of the whole batch.
  identity = torch.eye(
    matrices.shape[-1], dtype=matrices.dtype, device=matrices.device
  )
  matrices = torch.where(finite[:, None, None], matrices, identity)
  dtype = matrices.dtype
  batched = _attempt(matrices, exponent, epsilon, dtype)
  if batched is not None:
    roots = batched
  else:
    roots = torch.full_like(matrices, torch.nan)
    for index, matrix in enumerate(matrices.split(1)):
      root = _attempt(matrix, exponent, epsilon, dtype)
      if root is not None:
        roots[index] = root[0]
  # The only synchronisation with the device; eigh has as many.
  usable, good = torch.stack([finite, _finite(roots)]).tolist()
  retried = [index for index, is_good in enumerate(good) if not is_good]
  for index in retried:
    matrix = matrices[index : index + 1].double()
    root = _attempt(matrix, exponent, epsilon, dtype)
    if root is not None:
      roots[index] = root[0].to(dtype)
      good[index] = bool(torch.isfinite(roots[index]).all())
  return roots, [a and b for a, b in zip(usable, good, strict=True)], retried


def _attempt(
  matrices: torch.Tensor,
  exponent: float,
  epsilon: float,
  dtype: torch.dtype,
) -> torch.Tensor | None:
  try:
    values, vectors = torch.linalg.eigh(matrices)
  except torch.linalg.LinAlgError:
    return None
  shift = values.amin(dim=-1, keepdim=True).clamp_(max=0)
  values.sub_(shift).add_(epsilon).pow_(-exponent / 2)
  # X = Y Y^T, formed in `dtype`, may overflow where Y does not.
  values.masked_fill_(~torch.isfinite(values.square().to(dtype)), torch.nan)
  return vectors.mul_(values.unsqueeze(-2))


def _finite(matrices: torch.Tensor) -> torch.Tensor:
  return torch.isfinite(matrices).all(dim=-1).all(dim=-1)
