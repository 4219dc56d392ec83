"""Inverse roots of symmetric positive semidefinite matrices.

X = (A + epsilon I)^-q = Y Y^T with Y = Q diag(w^(-q/2)), A = Q diag(w) Q^T.
A spectrum that rounding made negative is shifted up by its smallest value, and
epsilon is absolute: both as in the competition's Shampoo. For a matrix that is
exactly diagonal, and hence for 1 x 1, this is (a_ii + epsilon)^-q.
"""

import torch


def half_roots(
  matrices: torch.Tensor, exponent: float, epsilon: float
) -> tuple[torch.Tensor, list[bool], list[int]]:
  """Factors Y with X = Y Y^T = (matrix + epsilon I)^-exponent.

  A decomposition that fails or is not finite in the matrices' own dtype is
  tried again in float64.

  Args:
    matrices: [batch, d, d], symmetric.
    exponent: q > 0.
    epsilon: > 0, added to the spectrum.

  Returns:
    Y, [batch, d, d]; for each matrix whether its root is good, otherwise its Y
    must not be used; and which were tried again.
  """
  finite = _finite(matrices)
  if matrices.shape[-1] == 1:
    roots = (matrices + epsilon) ** (-exponent / 2)
    return roots, (finite & _finite(roots)).tolist(), []
  # One NaN must not fail the decomposition of the whole batch.
  identity = torch.eye(
    matrices.shape[-1], dtype=matrices.dtype, device=matrices.device
  )
  matrices = torch.where(finite[:, None, None], matrices, identity)
  batched = _attempt(matrices, exponent, epsilon)
  if batched is not None:
    roots = batched
  else:
    roots = torch.full_like(matrices, torch.nan)
    for index, matrix in enumerate(matrices.split(1)):
      root = _attempt(matrix, exponent, epsilon)
      if root is not None:
        roots[index] = root[0]
  # The only wait for the device, once per batch (eigh itself waits as often).
  usable, good = torch.stack([finite, _finite(roots)]).tolist()
  retried = [index for index, is_good in enumerate(good) if not is_good]
  for index in retried:
    root = _attempt(matrices[index : index + 1].double(), exponent, epsilon)
    if root is not None:
      roots[index] = root[0].to(roots.dtype)
      good[index] = bool(torch.isfinite(roots[index]).all())
  return roots, [a and b for a, b in zip(usable, good, strict=True)], retried


def _attempt(
  matrices: torch.Tensor, exponent: float, epsilon: float
) -> torch.Tensor | None:
  try:
    values, vectors = torch.linalg.eigh(matrices)
  except torch.linalg.LinAlgError:
    return None
  shift = values.amin(dim=-1, keepdim=True).clamp_(max=0)
  values.sub_(shift).add_(epsilon).pow_(-exponent / 2)
  # X = Y Y^T may overflow where Y does not.
  values.masked_fill_(~torch.isfinite(values.square()), torch.nan)
  return vectors.mul_(values.unsqueeze(-2))


def _finite(matrices: torch.Tensor) -> torch.Tensor:
  return torch.isfinite(matrices).all(dim=-1).all(dim=-1)
