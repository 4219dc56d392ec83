"""Inverse roots and symmetric storage against float64 and dense references."""

import pytest
import torch

from weightavg.pytorch.shampoo import DistributedShampoo, symmetric_pairs
from weightavg.pytorch.shampoo import inverse_roots as roots
from weightavg.pytorch.shampoo.reference import inverse_root


def spectrum_matrix(values, dtype=torch.float64):
  """Return a symmetric matrix with the given eigenvalues."""
  values = torch.as_tensor(values, dtype=torch.float64)
  basis, _ = torch.linalg.qr(
    torch.randn(len(values), len(values), dtype=torch.float64)
  )
  return ((basis * values) @ basis.T).to(dtype)


def root_of(matrix, epsilon, exponent):
  halves, good, _ = roots.half_roots(matrix[None], exponent, epsilon)
  assert good == [True]
  return halves[0] @ halves[0].mT


@pytest.mark.parametrize('exponent', [1 / 2, 1 / 4, 1 / 6, 1 / 8, 1.7 / 4])
@pytest.mark.parametrize('dim', [1, 2, 7, 40])
def test_root_matches_float64_reference(dim, exponent):
  matrix = spectrum_matrix(torch.linspace(0.1, 2.0, dim))
  expected = inverse_root(matrix, 1e-6, exponent)
  torch.testing.assert_close(
    root_of(matrix, 1e-6, exponent), expected, rtol=1e-12, atol=1e-12
  )
  # float32: condition 20, 40 dimensions.
  torch.testing.assert_close(
    root_of(matrix.float(), 1e-6, exponent),
    expected.float(),
    rtol=1e-4,
    atol=1e-4,
  )


def test_root_inverts_power():
  matrix = spectrum_matrix([0.5, 1.0, 3.0, 4.0])
  root = root_of(matrix, 1e-12, 1 / 4)
  inverse = torch.linalg.matrix_power(root, 4)
  torch.testing.assert_close(
    inverse @ matrix, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-10
  )


@pytest.mark.parametrize('condition', [1e4, 1e8, 1e12])
def test_ill_conditioned_root_is_exact_on_its_spectrum(condition):
  values = torch.logspace(0, -torch.tensor(condition).log10(), 9).double()
  matrix = spectrum_matrix(values)
  root = root_of(matrix, 1e-3, 1 / 2)
  spectrum = torch.linalg.eigvalsh(root)
  expected = (values + 1e-3) ** -0.5
  # Rounding of 1e-16 in the spectrum, against an epsilon of 1e-3.
  torch.testing.assert_close(
    spectrum, expected.sort().values, rtol=1e-10, atol=0
  )


def test_rank_deficient_root_is_ruled_by_epsilon():
  vector = torch.tensor([3.0, 4.0], dtype=torch.float64)
  root = root_of(torch.outer(vector, vector), 1e-2, 1 / 2)
  along, across = vector / 5, torch.tensor([-0.8, 0.6], dtype=torch.float64)
  assert (root @ along).norm().item() == pytest.approx(25.01**-0.5)
  assert (root @ across).norm().item() == pytest.approx(10.0)


def test_negative_spectrum_is_shifted_up():
  matrix = torch.diag(torch.tensor([-0.25, 0.75], dtype=torch.float64))
  root = root_of(matrix, 1e-2, 1 / 2)
  expected = torch.diag(torch.tensor([0.01, 1.01]).double() ** -0.5)
  torch.testing.assert_close(root, expected)


def test_zero_matrix_gives_scaled_identity():
  root = root_of(torch.zeros(3, 3, dtype=torch.float64), 1e-8, 1 / 4)
  torch.testing.assert_close(root, 100 * torch.eye(3, dtype=torch.float64))


def test_bad_matrix_does_not_spoil_the_batch():
  batch = torch.eye(3).repeat(3, 1, 1)
  batch[1, 0, 0] = torch.nan
  halves, good, retried = roots.half_roots(batch, 1 / 2, 1e-8)
  assert good == [True, False, True]
  assert not retried
  torch.testing.assert_close(halves[2], torch.eye(3))


@pytest.mark.parametrize('dim', [1, 2])
def test_a_root_beyond_its_dtype_is_not_used(dim):
  # Y = 1e20 fits into float32, X = Y Y^T = 1e40 does not.
  zeros = torch.zeros(2, dim, dim)
  zeros[1] = torch.eye(dim)
  halves, good, _ = roots.half_roots(zeros, 2.0, 1e-20)
  assert good == [False, True]
  assert torch.equal(halves[1] @ halves[1].mT, torch.eye(dim))


def roots_of(optimizer, name):
  """Return the roots of a parameter's only block, by mode."""
  (block,) = optimizer.state_dict()['parameters'][name]['blocks']
  return [
    symmetric_pairs.root_half(pair[None]).unpack()[0]
    for key, pair in block.items()
    if key.startswith('pair')
  ]


def failing_eigh(monkeypatch, fails):
  real = torch.linalg.eigh

  def eigh(matrices):
    if fails(matrices):
      raise torch.linalg.LinAlgError('made to fail')
    return real(matrices)

  monkeypatch.setattr(torch.linalg, 'eigh', eigh)


def test_failed_decomposition_is_retried_in_float64(monkeypatch):
  failing_eigh(monkeypatch, lambda m: m.dtype == torch.float32)
  matrix = spectrum_matrix([1.0, 2.0, 3.0], torch.float32)
  expected = inverse_root(matrix.double(), 1e-8, 0.5).float()
  torch.testing.assert_close(root_of(matrix, 1e-8, 0.5), expected)


def test_failed_batch_is_decomposed_one_by_one(monkeypatch):
  batch = torch.stack([spectrum_matrix([1.0, 2.0]) for _ in range(3)])
  expected = inverse_root(batch[2], 1e-8, 0.5)
  failing_eigh(monkeypatch, lambda m: len(m) > 1)
  halves, good, retried = roots.half_roots(batch, 0.5, 1e-8)
  assert all(good)
  assert not retried
  torch.testing.assert_close(halves[2] @ halves[2].mT, expected)


def test_last_good_root_is_kept_counted_and_logged(monkeypatch, caplog):
  weight = torch.nn.Parameter(torch.randn(3, 2))
  optimizer = DistributedShampoo(
    [('layer.weight', weight)],
    lr=0.1,
    precondition_frequency=1,
    max_preconditioner_dim=3,
  )

  def step():
    weight.grad = torch.randn(3, 2)
    optimizer.step()

  step()
  before = roots_of(optimizer, 'layer.weight')
  failing_eigh(monkeypatch, lambda m: True)
  with caplog.at_level('WARNING', logger='absl'):
    step()
  after = roots_of(optimizer, 'layer.weight')
  assert all(map(torch.equal, before, after))
  assert optimizer.retried_roots == 2
  assert optimizer.kept_roots == 2
  assert 'layer.weight[block 0, mode 1]' in caplog.text
  assert torch.isfinite(weight).all()


def test_first_root_that_fails_leaves_the_identity(monkeypatch):
  failing_eigh(monkeypatch, lambda m: True)
  weight = torch.nn.Parameter(torch.zeros(3))
  optimizer = DistributedShampoo(
    [weight], lr=0.1, precondition_frequency=1, grafting='sgd'
  )
  weight.grad = torch.randn(3)
  optimizer.step()
  assert optimizer.kept_roots == 1
  torch.testing.assert_close(weight.detach(), -0.1 * weight.grad)


def test_one_bad_factor_does_not_keep_its_neighbours_roots():
  weights = [torch.nn.Parameter(torch.zeros(3)) for _ in range(3)]
  optimizer = DistributedShampoo(weights, lr=0.1, precondition_frequency=2)
  for weight in weights:
    weight.grad = torch.randn(3)
  optimizer.step()
  # The state's tensors are the live ones.
  blocks = optimizer.state_dict()['parameters']['0.1']['blocks']
  blocks[0]['pair_0'][1, 0] = torch.nan
  optimizer.step()
  assert optimizer.kept_roots == 1
  for index in range(3):
    (root,) = roots_of(optimizer, f'0.{index}')
    assert torch.equal(root, torch.eye(3)) == (index == 1)


# Around one tile of 128 and its half, two tiles, and a smaller last tile.
SIZES = [1, 3, 64, 65, 128, 129, 256, 300]


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('dim', SIZES)
@pytest.mark.parametrize('half', ['factor_half', 'root_half'])
def test_packed_product_with_own_transpose(half, dim, batch):
  pair = torch.randn(batch, dim, dim + 1, dtype=torch.float64)
  other = {'factor_half': 'root_half', 'root_half': 'factor_half'}[half]
  untouched = getattr(symmetric_pairs, other)(pair).unpack()
  matrix = getattr(symmetric_pairs, half)(pair)
  expected = matrix.unpack()
  rows = torch.randn(batch, 6, dim, dtype=torch.float64).mT
  for keep, add in ((0.75, 0.25), (1.0, 1.0), (0.0, 1.0)):
    matrix.add_gram(rows, keep, add)
    expected = keep * expected + add * rows @ rows.mT
    torch.testing.assert_close(matrix.unpack(), expected)
  assert torch.equal(getattr(symmetric_pairs, other)(pair).unpack(), untouched)


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('dim', SIZES)
# One column, few and many are multiplied in different ways.
@pytest.mark.parametrize('columns', [1, 6, 20])
@pytest.mark.parametrize('transposed', [False, True])
def test_packed_product_with_a_matrix(transposed, columns, dim, batch):
  pair = torch.randn(batch, dim, dim + 1, dtype=torch.float64)
  right = torch.randn(batch, dim, columns, dtype=torch.float64)
  if transposed:
    right = torch.randn(batch, columns, dim, dtype=torch.float64).mT
  for half in (
    symmetric_pairs.factor_half(pair),
    symmetric_pairs.root_half(pair),
  ):
    result = half.multiply(right)
    torch.testing.assert_close(result, half.unpack() @ right)
    if dim > 1:
      assert result.stride() == right.stride()
