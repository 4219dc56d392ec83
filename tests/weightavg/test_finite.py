"""Samples that are not finite, where no training step may wait for the look."""

import copy
import pickle

import pytest
import torch
from torch import nn

from weightavg import Auto, Ema, Lawa, Polynomial
from weightavg.pytorch import Averager, multi_tensor
from weightavg.pytorch.async_copy import SynchronousTransfers, Worker
from weightavg.pytorch.device_placement import DevicePlacement
from weightavg.pytorch.finite import Look, Looker
from weightavg.pytorch.offload import HostPlacement
from weightavg.pytorch.sharding import ShardedPlacement
from weightavg.schemes import Raw

NAN, INF = float('nan'), float('inf')
SCHEMES = [Ema(0.75), Lawa(3), Lawa(1), Polynomial(4.0)]


def host(scheme, tensors):
  return HostPlacement(scheme, tensors, SynchronousTransfers(), Worker())


PLACEMENTS = {
  'device': DevicePlacement,
  'cpu': host,
  'sharded': ShardedPlacement,
}


CLONES = {
  'deepcopy': copy.deepcopy,
  'pickle': lambda value: pickle.loads(pickle.dumps(value)),
}


class Event:
  """A CUDA event: the result has arrived when it was waited for."""

  def __init__(self, arrive):
    self.synchronize = arrive

  def __reduce__(self):
    raise TypeError('cannot pickle an event')


@pytest.mark.parametrize('clone', CLONES.values(), ids=CLONES)
def test_a_copy_of_a_look_has_its_result(clone):
  host = torch.zeros(())
  look = Look(torch.ones(()), host, Event(lambda: host.fill_(1.0)))
  assert clone(look).must_skip()


@pytest.mark.parametrize('clone', CLONES.values(), ids=CLONES)
def test_a_copy_of_an_average_in_host_memory_has_a_thread_of_its_own(clone):
  p = torch.ones(3)
  placement = host(Ema(0.5), [p])
  placement.add([p])
  other = clone(placement)
  other.add([3 * p])
  torch.testing.assert_close(other.shown([p])[0], p * 7 / 3)
  assert torch.equal(placement.shown([p])[0], p)


def sample(step, dtype):
  generator = torch.Generator().manual_seed(step)
  return [
    torch.randn(4, 3, generator=generator).to(dtype),
    torch.randn(5, generator=generator, dtype=torch.float64),
  ]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('name', PLACEMENTS)
@pytest.mark.parametrize('scheme', SCHEMES, ids=str)
@pytest.mark.parametrize('bad_steps', [(0,), (1, 2), (4,), (0, 1, 5, 7)])
def test_a_sample_skipped_on_the_device_leaves_no_trace(
  scheme, name, dtype, bad_steps
):
  first = sample(0, dtype)
  looked, clean = (PLACEMENTS[name](scheme, first) for _ in range(2))
  for step in range(9):
    tensors = sample(step, dtype)
    is_bad = step in bad_steps
    if is_bad:
      tensors[1][2] = NAN if step % 2 else INF
    result = Look(multi_tensor.not_finite(tensors))
    looked.add(tensors, result)
    assert result.must_skip() == is_bad
    if is_bad:
      looked.retract()
    else:
      # The same kernels as with a look: an update by SGD rounds otherwise
      # than a lerp.
      clean.add(tensors, Look(torch.zeros(())))
    assert looked.count == clean.count
    if clean.count:
      pairs = zip(looked.shown(first), clean.shown(first), strict=True)
      assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize('value', [0.0, 1e30, -3.0])
@pytest.mark.parametrize('bad', [None, NAN, INF, -INF])
def test_both_looks_agree(value, bad):
  tensors = [
    torch.full((3, 2), value),
    torch.full((2,), value, dtype=torch.bfloat16),
    torch.ones(2, dtype=torch.int64),
    torch.ones(2, dtype=torch.complex64),
  ]
  if bad is not None:
    tensors[1][1] = bad
  assert bool(multi_tensor.not_finite(tensors)) == (bad is not None)
  assert multi_tensor.all_finite(tensors) == (bad is None)
  assert Looker().look(tensors) is (bad is None)


def test_both_looks_add_magnitudes_in_float32():
  # In float16 the sum would overflow at 65,504.
  half = [torch.full((1000,), 100.0, dtype=torch.float16)]
  assert multi_tensor.all_finite(half)
  assert not multi_tensor.not_finite(half)
  # The sum overflows, the root of the sum of squares would not.
  diverged = [torch.full((10,), 1e38)]
  assert not multi_tensor.all_finite(diverged)
  assert multi_tensor.not_finite(diverged)


@pytest.mark.parametrize('place', [0, 4099, -1])
@pytest.mark.parametrize('bad', [NAN, INF, -INF])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_large_tensors_are_looked_at_as_a_whole(dtype, bad, place):
  # Squares of 1e30 overflow in float32, their sum does not.
  large = torch.full((3, 4000), 1e30, dtype=dtype).t()
  tensors = [torch.ones(3, dtype=dtype), large, torch.ones(2, dtype=dtype)]
  assert multi_tensor.all_finite(tensors)
  large.t().view(-1)[place] = bad
  assert not multi_tensor.all_finite(tensors)


def test_the_skipping_update_is_that_of_lerp():
  averages, samples = sample(0, torch.float32), sample(1, torch.float32)
  expected = [a.lerp(x, 0.25) for a, x in zip(averages, samples, strict=True)]
  multi_tensor.skipping_lerp_(averages, samples, 0.25, torch.zeros(()))
  for a, b in zip(averages, expected, strict=True):
    # The same formula, contracted otherwise.
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
  ('scheme', 'options'),
  [
    (Ema(0.5), {}),
    (Polynomial(4.0), {}),
    (Lawa(2), {'every': 1}),
    (Auto([Raw(), Ema(0.5), Lawa(2)]), {}),
  ],
)
def test_an_update_reads_nothing_back_from_the_device(scheme, options):
  """A tensor on the meta device has no value: reading one raises."""
  model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to('meta')
  averager = Averager(model, scheme, **options)
  averager.update(finite=True)
  averager.update()
  with pytest.raises((RuntimeError, NotImplementedError)):
    averager.skipped  # noqa: B018


def test_the_counts_of_an_averager_are_settled_when_somebody_asks():
  p = nn.Parameter(torch.ones(2))
  averager = Averager([('p', p)], Ema(0.5))
  averager.update()
  p.data.fill_(NAN)
  averager.update()
  assert (averager.samples, averager.skipped) == (1, 1)
  assert averager.state_dict()['skipped'] == 1
