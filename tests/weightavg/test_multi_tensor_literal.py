"""Multi-tensor operations by literal numbers, each in a few milliseconds."""

import pytest
import torch

from weightavg.pytorch import multi_tensor

NAN = float('nan')


def full(*values, dtype=torch.float32):
  return [torch.full((2, 3), value, dtype=dtype) for value in values]


def numbers(tensors):
  """The value of each tensor, all of whose elements are equal."""
  assert all(torch.equal(t, t.flatten()[0].expand_as(t)) for t in tensors)
  return [t.flatten()[0].item() for t in tensors]


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_flat_memory_is_in_the_order_of_memory(order):
  tensor = torch.arange(24.0).reshape(2, 3, 4).permute(order)
  found = multi_tensor.flat(tensor)
  assert found.tolist() == list(range(24))
  assert found.data_ptr() == tensor.data_ptr()


def test_flat_memory_has_neither_gaps_nor_overlaps():
  tensor = torch.arange(12.0).reshape(3, 4)
  assert multi_tensor.flat(tensor[:, ::2]) is None
  assert multi_tensor.flat(tensor[0].expand(3, 4)) is None
  assert multi_tensor.flat(tensor[:, :3].t()) is None


def test_pieces_hold_small_tensors_together_and_cut_large_ones():
  tensors = [torch.zeros(n) for n in (3, 2, 10, 1, 4)]
  found = list(multi_tensor.pieces(tensors, size=4))
  sizes = [[t.numel() for t in piece] for (piece,) in found]
  # The two tensors around the large one wait for each other.
  assert sizes == [[3], [4], [4], [2], [2, 1], [4]]
  cut = [piece[0].data_ptr() for (piece,) in found[1:4]]
  assert cut == [tensors[2].data_ptr() + offset for offset in (0, 16, 32)]


@pytest.mark.parametrize(
  ('sizes', 'expected'),
  [
    ((2, 2), [[2, 2]]),
    ((3, 2, 2), [[3], [2, 2]]),
    ((2, 1, 2), [[2, 1], [2]]),
  ],
)
def test_pieces_are_as_full_as_they_may_be(sizes, expected):
  tensors = [torch.zeros(n) for n in sizes]
  found = multi_tensor.pieces(tensors, size=4)
  assert [[t.numel() for t in piece] for (piece,) in found] == expected


def test_a_tensor_as_large_as_a_piece_is_whole():
  tensors = [torch.zeros(2, 2), torch.zeros(4)]
  found = [piece for (piece,) in multi_tensor.pieces(tensors, size=4)]
  assert [[t.shape for t in piece] for piece in found] == [[(2, 2)], [(4,)]]


def test_pieces_of_several_lists_are_cut_alike():
  ones = [torch.zeros(5), torch.zeros(2), torch.zeros(2, 3)]
  twos = [torch.zeros(5), torch.zeros(2), torch.zeros(3, 2).t()]
  found = list(multi_tensor.pieces(ones, twos, size=4))
  sizes = [[[t.numel() for t in part] for part in piece] for piece in found]
  # The last two differ in strides: they stay whole.
  assert sizes == [[[4]] * 2, [[1]] * 2, [[2]] * 2, [[6]] * 2]
  with pytest.raises(ValueError, match='zip'):
    list(multi_tensor.pieces(ones, twos[:2], size=4))


def test_an_accelerator_takes_everything_in_one_piece():
  tensors = [torch.zeros(10, device='meta'), torch.zeros(2, device='meta')]
  ((piece,),) = multi_tensor.pieces(tensors, size=4)
  assert [t.numel() for t in piece] == [10, 2]
  assert list(multi_tensor.pieces([], [])) == []


def test_pieces_are_as_long_as_the_module_says():
  tensors = [torch.zeros(multi_tensor.PIECE + 1)]
  sizes = [piece[0].numel() for (piece,) in multi_tensor.pieces(tensors)]
  assert sizes == [multi_tensor.PIECE, 1]


def test_a_copy_casts():
  targets = full(0.0, 0.0)
  multi_tensor.copy_(targets, full(1.5, 2.5, dtype=torch.bfloat16))
  assert numbers(targets) == [1.5, 2.5]
  multi_tensor.copy_([], [])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_lerp_moves_by_its_weight(dtype):
  averages = [*full(0.0, 8.0), *full(4.0, dtype=torch.float64)]
  samples = [*full(8.0, 4.0, dtype=dtype), *full(0.0, dtype=torch.float64)]
  multi_tensor.lerp_(averages, samples, 0.25)
  assert numbers(averages) == [2.0, 7.0, 3.0]


def test_a_lerp_of_half_precision_rounds_the_average_only():
  """1 + 2^-9 is no bfloat16; the difference is taken in float32."""
  averages = full(1.0 + 2.0**-9)
  multi_tensor.lerp_(averages, full(1.0, dtype=torch.bfloat16), 0.5)
  assert numbers(averages) == [1.0 + 2.0**-10]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_averages_share_a_sample_with_weights_of_their_own(dtype):
  ones, twos = full(0.0, 8.0), full(0.0, 8.0)
  samples = full(8.0, 0.0, dtype=dtype)
  multi_tensor.lerp_all_([ones, twos], samples, [0.25, 0.5])
  assert numbers(ones) == [2.0, 6.0]
  assert numbers(twos) == [4.0, 4.0]
  with pytest.raises(ValueError, match='zip'):
    multi_tensor.lerp_all_([ones, twos], samples, [0.25])


def test_a_mean_is_summed_in_float32_oldest_first():
  targets = full(NAN, NAN)
  # In another order, or in bfloat16, the one would be lost.
  windows = [
    full(2.0**27, 1.0, dtype=torch.bfloat16),
    full(-(2.0**27), 2.0, dtype=torch.bfloat16),
    full(1.0, 3.0, dtype=torch.bfloat16),
  ]
  multi_tensor.mean_(targets, windows)
  assert numbers(targets) == pytest.approx([1.0 / 3.0, 2.0])
  multi_tensor.mean_(targets, windows[1:2])
  assert numbers(targets) == [-(2.0**27), 2.0]


@pytest.mark.parametrize('size', [1, 8])
def test_a_mean_of_large_tensors_covers_all_elements(size):
  numel = size * multi_tensor.PIECE + 3
  target = torch.zeros(numel)
  samples = [torch.arange(numel), torch.arange(numel) + 2]
  windows = [[s.float()] for s in samples]
  multi_tensor.mean_([target], windows)
  assert torch.equal(target, torch.arange(numel).float() + 1)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_lerp_is_left_out_if_a_number_says_so(dtype):
  averages = [*full(0.0, 8.0), *full(1j, dtype=torch.complex64)]
  samples = [*full(NAN, 4.0, dtype=dtype), *full(1.0, dtype=torch.complex64)]
  multi_tensor.skipping_lerp_(averages, samples, 0.25, torch.ones(()))
  assert numbers(averages) == [0.0, 8.0, 1j]
  samples[0].fill_(4.0)
  multi_tensor.skipping_lerp_(averages, samples, 0.25, torch.zeros(()))
  assert numbers(averages) == [1.0, 7.0, 0.25 + 0.75j]
  with pytest.raises(ValueError, match='zip'):
    multi_tensor.skipping_lerp_(averages, samples[:2], 0.25, torch.ones(()))


def test_fused_kernels_get_tensors_of_one_dense_layout():
  dense = torch.zeros(2, 3, 4, 5)
  last = dense.to(memory_format=torch.channels_last)
  for one, other, is_alike in (
    (dense, dense.double(), True),
    (last, last, True),
    (dense, last, False),
    (dense[:, ::2], dense[:, ::2], False),
  ):
    assert multi_tensor._is_laid_out_alike(one, other) == is_alike


def test_a_copy_is_left_out_if_a_number_says_so():
  targets, sources = full(1.0, 2.0), full(NAN, 4.0)
  multi_tensor.skipping_copy_(targets, sources, torch.ones(()))
  assert numbers(targets) == [1.0, 2.0]
  multi_tensor.skipping_copy_(targets, full(3.0, 4.0), torch.zeros(()))
  assert numbers(targets) == [3.0, 4.0]
  with pytest.raises(ValueError, match='zip'):
    multi_tensor.skipping_copy_(targets, sources[:1], torch.ones(()))


KINDS = {
  'scalar': torch.ones(()),
  'small': torch.ones(7),
  'as large as a small one': torch.ones(1 << 13),
  'large': torch.ones(1 << 14),
  'large in columns': torch.ones(100, 200).t(),
  'with gaps': torch.ones(4, 6)[:, ::2],
  'float64': torch.ones(5, dtype=torch.float64),
  'bfloat16': torch.ones(5, dtype=torch.bfloat16),
  'complex': torch.ones(5, dtype=torch.complex64),
  'large complex': torch.ones(1 << 14, dtype=torch.complex64),
}


@pytest.mark.parametrize('bad', [NAN, float('inf'), -float('inf')])
@pytest.mark.parametrize('kind', KINDS)
def test_one_bad_element_is_found_beside_all_other_kinds(kind, bad):
  tensors = [t.clone() for t in KINDS.values()] + [torch.ones(3).int()]
  assert multi_tensor.all_finite(tensors)
  assert multi_tensor.not_finite(tensors).item() == 0.0
  tensor = tensors[list(KINDS).index(kind)]
  tensor[(-1,) * tensor.ndim] = bad
  assert not multi_tensor.all_finite(tensors)
  found = multi_tensor.not_finite(tensors)
  assert found.item() == 1.0
  assert (found.dtype, found.ndim) == (torch.float32, 0)


@pytest.mark.parametrize('place', [0, 16, 17, 39])
def test_one_bad_element_is_found_in_any_batch_of_small_tensors(place):
  """Seventeen tensors of 8,000 elements are more than one batch."""
  tensors = [torch.ones(8000) for _ in range(40)]
  assert multi_tensor.all_finite(tensors)
  tensors[place][-1] = NAN
  assert not multi_tensor.all_finite(tensors)


def test_large_weights_are_finite_though_their_squares_are_not():
  assert multi_tensor.all_finite([torch.full((1 << 14,), 1e25)])
  assert multi_tensor.not_finite([torch.full((1 << 14,), 1e25)]) == 0.0
  # float16 ends at 65504; its sums are taken in float32.
  assert multi_tensor.not_finite([torch.full((999,), 99.0).half()]) == 0.0
  assert not multi_tensor.all_finite([torch.full((1 << 14,), 1e38)])
  assert multi_tensor.all_finite([torch.ones(3, dtype=torch.int64)])


def test_single_tensors_are_lists_too():
  (one,), (two,), (sample,) = full(0.0), full(0.0), full(8.0)
  multi_tensor.lerp_all_([[one], [two]], [sample], [0.25, 0.5])
  assert numbers([one, two]) == [2.0, 4.0]
  multi_tensor.skipping_lerp_([one], [sample], 0.5, torch.zeros(()))
  assert numbers([one]) == [5.0]


def test_copies_are_views_of_one_block_of_each_dtype():
  tensors = [
    torch.arange(6.0).reshape(3, 2).t(),
    torch.arange(4.0, dtype=torch.float64),
    torch.tensor(7.0),
  ]
  found, blocks = multi_tensor.copies(tensors)
  for copy, tensor in zip(found, tensors, strict=True):
    assert copy.dtype == tensor.dtype
    assert torch.equal(copy, tensor)
  assert [b.shape for b in blocks] == [(7,), (4,)]
  for block in blocks:
    block.fill_(9.0)
  assert all(torch.equal(copy, torch.full_like(copy, 9.0)) for copy in found)
  assert tensors[2].item() == 7.0


def test_a_copy_is_left_out_if_an_element_is_not_finite():
  targets = full(1.0, 2.0)
  multi_tensor.copy_if_finite_(targets, full(3.0, NAN))
  assert numbers(targets) == [1.0, 2.0]
  multi_tensor.copy_if_finite_(targets, full(3.0, 4.0))
  assert numbers(targets) == [3.0, 4.0]
