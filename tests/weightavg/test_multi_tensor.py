"""Multi-tensor operations: pieces cover everything once; nothing allocates."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from weightavg import AveragingConfig
from weightavg.pytorch import Averager, NadamW, multi_tensor

SHAPES = st.lists(
  st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=6
)


@given(SHAPES, st.integers(1, 40))
def test_pieces_cover_every_element_once(shapes, size):
  tensors = [torch.zeros(shape) for shape in shapes]
  others = [torch.zeros(shape) for shape in shapes]
  old, multi_tensor.PIECE = multi_tensor.PIECE, size
  try:
    for ones, twos in multi_tensor.pieces(tensors, others):
      assert len(ones) == len(twos)
      for one, two in zip(ones, twos, strict=True):
        one.add_(1.0)
        two.add_(2.0)
  finally:
    multi_tensor.PIECE = old
  assert all(bool((t == 1).all()) for t in tensors)
  assert all(bool((t == 2).all()) for t in others)


def test_tensors_of_other_strides_are_not_cut_apart(monkeypatch):
  monkeypatch.setattr(multi_tensor, 'PIECE', 4)
  a = torch.arange(24.0).reshape(2, 3, 2, 2)
  b = a.to(memory_format=torch.channels_last)
  ((ones, twos),) = multi_tensor.pieces([a], [b])
  assert torch.equal(ones[0], twos[0])


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_all_finite_finds_one_bad_element(bad, dtype):
  tensors = [torch.ones(5, dtype=dtype), torch.ones(3, 4, dtype=dtype)]
  assert multi_tensor.all_finite(tensors)
  tensors[1][2, 3] = bad
  assert not multi_tensor.all_finite(tensors)


def test_all_finite_looks_at_every_dtype():
  bad = torch.tensor([torch.nan], dtype=torch.bfloat16)
  assert not multi_tensor.all_finite([torch.ones(1), bad])


def test_all_finite_is_not_fooled_by_sums():
  inf = float('inf')
  assert not multi_tensor.all_finite([torch.tensor([inf, -inf])])
  # float16 elements may add up to more than float16 holds.
  assert multi_tensor.all_finite([torch.full((9,), 6e4, dtype=torch.float16)])
  assert multi_tensor.all_finite([])


class Allocations(TorchDispatchMode):
  """Largest tensor, in elements, that an operation returned anew."""

  def __init__(self):
    super().__init__()
    self.largest = 0

  def __torch_dispatch__(self, function, types, args=(), kwargs=None):
    out = function(*args, **(kwargs or {}))
    known = {
      t.untyped_storage().data_ptr()
      for arg in args
      for t in (arg if isinstance(arg, list | tuple) else [arg])
      if isinstance(t, torch.Tensor)
    }
    for t in out if isinstance(out, list | tuple) else [out]:
      new = isinstance(t, torch.Tensor) and (
        t.untyped_storage().data_ptr() not in known
      )
      if new:
        self.largest = max(self.largest, t.numel())
    return out


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
  'knobs',
  [
    {'averaging_scheme': 'lawa', 'lawa_window': 2},
    {'averaging_scheme': 'ema'},
    {'averaging_scheme': 'polynomial'},
  ],
)
def test_nothing_of_parameter_size_is_allocated_after_warm_up(
  knobs, dtype, monkeypatch
):
  monkeypatch.setattr(multi_tensor, 'PIECE', 64)
  p = torch.nn.Parameter(torch.randn(40, 50).to(dtype))
  optimizer = NadamW([p], lr=0.1)
  averager = Averager.from_config(
    [('p', p)],
    AveragingConfig.from_point(averaging_every_steps=1, **knobs),
    budget=10,
  )
  p.grad = torch.ones_like(p)

  def step():
    optimizer.step()
    averager.update()
    if dtype == torch.float32:
      with averager.evaluating():
        pass

  for _ in range(3):
    step()
  with Allocations() as allocations:
    step()
  assert 0 < allocations.largest <= 64


@pytest.mark.parametrize(
  'other', [{'device': 'meta'}, {'dtype': torch.float64}], ids=str
)
def test_groups_agree_in_device_and_dtype_list_by_list(other):
  plain, odd = torch.ones(1), torch.ones(1, **other)
  same = [torch.zeros(1)] * 3
  (whole,) = multi_tensor.by_device_and_dtype([plain] * 3, same)
  assert [len(part) for part in whole] == [3, 3]
  groups = list(multi_tensor.by_device_and_dtype([plain, odd, plain], same))
  assert [[len(part) for part in group] for group in groups] == [[2, 2], [1, 1]]
  assert groups[1][0][0] is odd
  # One odd list is one group.
  (whole,) = multi_tensor.by_device_and_dtype([plain] * 3, [odd] * 3)
  assert all(t is odd for t in whole[1])
  with pytest.raises(ValueError, match='zip'):
    list(multi_tensor.by_device_and_dtype([plain], same))
  assert list(multi_tensor.by_device_and_dtype([], [])) == []
