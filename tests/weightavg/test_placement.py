"""Placements give the same bits; training waits for no copy to the host."""

import time

import pytest
import torch
from placement_runs import (
  PLACEMENTS,
  SCHEMES,
  build,
  change,
  trajectory,
  values,
  weights,
)
from tensors import assert_same, through_a_file
from torch import nn

from weightavg.pytorch.async_copy import Inline, Worker
from weightavg.pytorch.offload import HostPlacement
from weightavg.schemes import Ema, Lawa


@pytest.mark.parametrize('swap', ['exchange', 'copy'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('placement', PLACEMENTS[1:])
def test_placements_give_the_same_bits(placement, scheme, dtype, swap):
  assert_same(
    trajectory(scheme, placement, dtype, averaging_swap=swap),
    trajectory(scheme, 'device', dtype),
  )


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

      def exception(self):
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
  recorded.jobs[0].exception()  # the worker gets to it before the next sample
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
