"""Placements give the same bits; who waits for whom; states convert."""

import io
import time
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from gloo import run_on_ranks
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from weightavg import AveragingConfig
from weightavg.pytorch import Averager, sharding
from weightavg.pytorch.async_copy import Inline, Worker
from weightavg.pytorch.offload import HostPlacement
from weightavg.pytorch.sharding import Layout
from weightavg.schemes import Ema, Lawa

averager_of = Averager.from_config

PLACEMENTS = ('device', 'cpu', 'sharded')
SCHEMES = {
  'lawa': {'averaging_scheme': 'lawa', 'lawa_window': 3},
  'ema': {'averaging_scheme': 'ema', 'ema_decay': 0.7},
  'polynomial': {'averaging_scheme': 'polynomial'},
}


def weights(dtype=torch.float32):
  """Odd sizes, a channels-last tensor, a strided one, an empty one."""
  torch.manual_seed(0)
  strided = nn.Parameter(torch.randn(6, 5).to(dtype)[:, ::2])
  last = torch.randn(3, 4, 5, 2).to(memory_format=torch.channels_last)
  return [
    ('matrix', nn.Parameter(torch.randn(37, 3).to(dtype))),
    ('last', nn.Parameter(last.to(dtype))),
    ('empty', nn.Parameter(torch.empty(0, 3, dtype=dtype))),
    ('scalar', nn.Parameter(torch.randn(()).to(dtype))),
    ('strided', strided),
    ('gaps', nn.Parameter(torch.randn(6, 5).to(dtype).t()[::2])),
    ('double', nn.Parameter(torch.randn(7, dtype=torch.float64))),
  ]


def build(named, scheme, placement, every=1, **knobs):
  config = AveragingConfig.from_point(
    averaging_placement=placement,
    averaging_every_steps=every,
    **SCHEMES[scheme],
    **knobs,
  )
  return averager_of(named, config, budget=100)


def change(named, step):
  generator = torch.Generator().manual_seed(step)
  with torch.no_grad():
    for _, p in named:
      p.add_(torch.randn(p.shape, generator=generator))


def values(named):
  return [p.detach().clone() for _, p in named]


def assert_same(a, b):
  for x, y in zip(a, b, strict=True):
    assert torch.equal(x, y)


def trajectory(scheme, placement, dtype, **knobs):
  """Weights during evaluation and the raw weights after it, step by step."""
  named = weights(dtype)
  averager = build(named, scheme, placement, **knobs)
  seen = []
  for step in range(6):
    change(named, step)
    averager.update()
    with averager.evaluating():
      seen += values(named)
    seen += values(named)
  return seen


@pytest.mark.parametrize('swap', ['exchange', 'copy'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('placement', PLACEMENTS[1:])
def test_placements_give_the_same_bits(placement, scheme, dtype, swap):
  assert_same(
    trajectory(scheme, placement, dtype, averaging_swap=swap),
    trajectory(scheme, 'device', dtype),
  )


def through_a_file(state):
  file = io.BytesIO()
  torch.save(state, file)
  file.seek(0)
  return torch.load(file, weights_only=True)


@pytest.mark.parametrize('shown', [False, True])
@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('source', PLACEMENTS)
@pytest.mark.parametrize('target', PLACEMENTS)
def test_states_convert_between_placements(source, target, scheme, shown):
  named = weights()
  averager = build(named, scheme, source)
  for step in range(4):
    change(named, step)
    averager.update()
  if shown:
    averager.swap_in()
  saved = through_a_file(averager.state_dict())
  model = values(named)

  other = [
    (n, nn.Parameter(p.clone())) for (n, _), p in zip(named, model, strict=True)
  ]
  restored = build(other, scheme, target)
  restored.load_state_dict(saved)
  for pairs, a in ((named, averager), (other, restored)):
    a.swap_out()
    change(pairs, 4)
    a.update()
    a.swap_in()
  assert_same(values(other), values(named))


def test_a_sharded_average_of_several_dtypes_can_be_saved():
  named = weights()
  averager = build(named, 'ema', 'sharded')
  averager.update()
  averager.swap_in()
  shown = through_a_file([p.data for _, p in named])
  assert_same(shown, values(named))


@pytest.mark.parametrize('placement', ['cpu', 'sharded'])
def test_weights_on_several_devices_stay_there(placement):
  named = [(d, nn.Parameter(torch.ones(1, device=d))) for d in ('cpu', 'meta')]
  with pytest.raises(ValueError, match='on cpu and meta; only device takes'):
    build(named, 'ema', placement)


def test_averaging_in_host_memory_counts_its_staging_buffer():
  named = [('p', nn.Parameter(torch.zeros(10)))]
  sizes = {}
  for placement in PLACEMENTS:
    averager = build(named, 'ema', placement)
    averager.update()
    sizes[placement] = averager.placement.nbytes()
  assert sizes == {'device': 40, 'cpu': 80, 'sharded': 40}


# Who waits for whom.


class Recorded:
  """Transfers and a worker that write down what happens, when told to run."""

  def __init__(self):
    self.events = []
    self.jobs = []

  def copy_out(self, hosts, tensors):
    self.events.append('copy starts')
    torch._foreach_copy_(list(hosts), list(tensors))

  def wait(self):
    self.events.append('copy has arrived')

  def submit(self, job):
    self.events.append('job queued')
    recorded = self

    class Future:
      done = False

      def result(self):
        if not self.done:
          recorded.events.append('training waits')
          job()
          self.done = True

    self.jobs.append(Future())
    return self.jobs[-1]


def test_training_waits_only_for_a_sample_that_is_not_in_yet():
  recorded = Recorded()
  p = torch.ones(2)
  placement = HostPlacement(Ema(0.5), [p], recorded, recorded)
  placement.add([p])
  assert recorded.events == ['copy starts', 'job queued']
  recorded.jobs[0].result()  # the worker gets to it before the next sample
  recorded.events.clear()
  placement.add([p * 3])
  assert recorded.events == ['copy starts', 'job queued']
  # The next sample comes at once: its copy must not overwrite the staging
  # buffer before the worker has read it.
  recorded.events.clear()
  placement.add([p * 3])
  assert recorded.events == [
    'training waits',
    'copy has arrived',
    'copy starts',
    'job queued',
  ]
  # (1 + 2 * 3 + 4 * 3) / 7
  torch.testing.assert_close(placement.shown([p])[0], p * 19 / 7)


def test_the_average_is_complete_when_it_is_asked_for():
  for ask in ('shown', 'buffers', 'nbytes'):
    recorded = Recorded()
    p = torch.ones(2)
    placement = HostPlacement(Lawa(2), [p], recorded, recorded)
    placement.add([p])
    getattr(placement, ask)(*([[p]] if ask == 'shown' else []))
    assert recorded.events[-1] == 'copy has arrived'


def test_a_worker_takes_samples_in_while_training_goes_on():
  class Slow(Recorded):
    def wait(self):
      time.sleep(0.05)

  p = torch.ones(3)
  placement = HostPlacement(Lawa(2), [p], Slow(), Worker())
  for value in (1.0, 2.0, 4.0):
    p.fill_(value)
    placement.add([p])
    p.fill_(-100.0)  # the sample was copied before
  assert torch.equal(placement.shown([p])[0], torch.full((3,), 3.0))


@pytest.mark.parametrize('worker', [Worker, Inline])
def test_failures_behind_trainings_back_are_raised(worker):
  class Broken(Recorded):
    def wait(self):
      raise RuntimeError('the copy failed')

  placement = HostPlacement(Ema(0.5), [torch.ones(1)], Broken(), worker())
  placement.add([torch.ones(1)])
  with pytest.raises(RuntimeError, match='the copy failed'):
    placement.shown([torch.ones(1)])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('placement', PLACEMENTS)
def test_cuda_weights_are_averaged_as_on_the_cpu(scheme, placement):
  p = nn.Parameter(torch.zeros(1 << 20, device='cuda'))
  q = nn.Parameter(torch.zeros(1 << 20))
  on_device = build([('p', p)], scheme, placement)
  on_cpu = build([('p', q)], scheme, 'device')
  optimizers = [torch.optim.SGD([w], lr=0.1) for w in (p, q)]
  for step in range(20):
    generator = torch.Generator().manual_seed(step)
    gradient = torch.randn(1 << 20, generator=generator)
    p.grad, q.grad = gradient.cuda(), gradient
    for optimizer, averager in zip(
      optimizers, (on_device, on_cpu), strict=True
    ):
      optimizer.step()
      averager.update()
  raw = p.detach().cpu()
  with on_device.evaluating(), on_cpu.evaluating():
    # A GPU may fuse the multiplication and addition of a lerp.
    torch.testing.assert_close(
      p.detach().cpu(), q.detach(), rtol=1e-5, atol=1e-6
    )
  assert torch.equal(p.detach().cpu(), raw)


# Shares.


@given(
  st.lists(
    st.tuples(
      st.integers(0, 300),
      st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    ),
    min_size=1,
    max_size=8,
  ),
  st.integers(1, 5),
)
def test_shares_cover_every_element_once_and_are_balanced(tensors, world_size):
  tensors = [torch.zeros(n, dtype=dtype) for n, dtype in tensors]
  layout = Layout(tensors, world_size)
  covered = [torch.zeros(len(t)) for t in tensors]
  for rank in range(world_size):
    nbytes = 0
    for s in layout.segments(rank):
      covered[s.index][s.begin : s.end] += 1
      nbytes += (s.end - s.begin) * tensors[s.index].element_size()
      assert s.offset + nbytes <= 2 * layout.share_bytes
    assert nbytes <= layout.share_bytes
  assert all(bool((c == 1).all()) for c in covered)
  total = sum(t.numel() * t.element_size() for t in tensors)
  # Each tensor and the last share are padded by less than 64 bytes.
  assert layout.share_bytes <= total / world_size + 64 * (len(tensors) + 1)


def sharded_ranks(rank, folder):
  for scheme in SCHEMES:
    _sharded_equals_unsharded(scheme)
    _sharded_resumes(rank, scheme, f'{folder}/{scheme}')
  _states_that_cannot_be_loaded(rank)
  _is_a_share(rank)


def _sharded_equals_unsharded(scheme):
  for dtype in (torch.float32, torch.bfloat16):
    assert_same(
      trajectory(scheme, 'sharded', dtype), trajectory(scheme, 'device', dtype)
    )


def _sharded_resumes(rank, scheme, path):
  named = weights()
  averager = build(named, scheme, 'sharded')
  for step in range(4):
    change(named, step)
    averager.update()
  averager.swap_in()
  averager.swap_in()  # the benchmark may ask twice
  if rank == 0:
    state = averager.state_dict()
    assert state['complete']
    torch.save([values(named), state], path)
  dist.barrier()
  model, state = torch.load(path, weights_only=True)

  def go_on(named, averager):
    averager.swap_out()
    change(named, 4)
    averager.update()
    averager.swap_in()
    return values(named)

  undisturbed = go_on(named, averager)
  for placement in PLACEMENTS:
    other = [
      (n, nn.Parameter(p.clone()))
      for (n, _), p in zip(named, model, strict=True)
    ]
    restored = build(other, scheme, placement)
    restored.load_state_dict(state)
    # The last save of a run that is resumed at its end has no evaluation.
    if rank == 0:
      again = restored.state_dict()
      assert again['complete']
      for a, b in zip(again['buffers'], state['buffers'], strict=True):
        assert_same(a.values(), b.values())
    assert_same(go_on(other, restored), undisturbed)
  if rank == 0:
    torch.save([model, state, undisturbed], path)


def _states_that_cannot_be_loaded(rank):
  named = weights()
  late, without = (
    build(named, 'ema', 'sharded', averaging_checkpoints=c)
    for c in (True, False)
  )
  for averager in (late, without):
    averager.update()
    averager.swap_in()
    averager.swap_out()
  late.update()  # a sample after what was gathered
  for averager in (late, without):
    with mock.patch.object(sharding.logging, 'warning') as said:
      state = averager.state_dict()
    # Rank 0 alone saves; without checkpoints nobody is to.
    assert said.called == (averager is late and rank == 0)
    assert not state['complete']
    with pytest.raises(
      ValueError, match='without the shares of the other ranks'
    ):
      averager.load_state_dict(state)


def _is_a_share(rank):
  named = [('p', nn.Parameter(torch.zeros(1000)))]
  averager = build(named, 'lawa', 'sharded')
  for _ in range(3):
    averager.update()
  # Three samples of 4000 bytes over two ranks, in multiples of 64 bytes.
  assert averager.placement.nbytes() == 3 * (2048 if rank == 0 else 1952)
  averager.swap_in()  # leaves a gather under way when the group is destroyed


def statistics_ranks(rank, folder):
  """BatchNorm whose statistics differ between ranks: no SyncBatchNorm."""
  del folder
  samples = ([2.0, 10.0], [4.0, 30.0])  # of rank 0, of rank 1
  for placement, collective in (
    ('device', True),
    ('cpu', True),
    ('sharded', False),
    ('device', False),
  ):
    model = nn.BatchNorm1d(3).double()
    config = AveragingConfig.from_point(
      averaging_scheme='polynomial',
      averaging_power=0.0,
      averaging_every_steps=1,
      averaging_placement=placement,
    )
    averager = averager_of(model, config, budget=2, collective=collective)
    for value in samples[rank]:
      model.running_mean.fill_(value)
      averager.update()
    own = samples[rank][1]
    source = rank if (placement, collective) == ('device', False) else 0
    with averager.evaluating():
      assert model.running_mean.tolist() == [sum(samples[source]) / 2] * 3
    # Training's own statistics stay each rank's.
    assert model.running_mean.tolist() == [own] * 3


def test_running_statistics_are_those_of_rank_0(tmp_path):
  run_on_ranks(2, statistics_ranks, str(tmp_path))


def test_sharded_averages_on_two_ranks(tmp_path):
  run_on_ranks(2, sharded_ranks, str(tmp_path))
  # And the file of two ranks goes on on one.
  for scheme in SCHEMES:
    model, state, undisturbed = torch.load(tmp_path / scheme, weights_only=True)
    named = [
      (n, nn.Parameter(p.clone()))
      for (n, _), p in zip(weights(), model, strict=True)
    ]
    averager = build(named, scheme, 'sharded')
    averager.load_state_dict(state)
    averager.swap_out()
    change(named, 4)
    averager.update()
    averager.swap_in()
    assert_same(values(named), undisturbed)
