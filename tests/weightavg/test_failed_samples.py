"""A sample that fails, as where memory lacks, leaves the averager sound."""

import pytest
import torch
from placement_runs import PLACEMENTS
from tensors import assert_same, through_a_file
from torch import nn

from weightavg import Auto, Ema, Lawa, Polynomial
from weightavg.pytorch import Averager

AUTO = Auto([Polynomial(0.0), Lawa(4)])


def fail(*args):
  raise torch.OutOfMemoryError('no memory')


def started(scheme, placement='device'):
  net = nn.Linear(1, 1, bias=False)
  averager = Averager(net, scheme, every=1, placement=placement)
  for value in (1.0, 2.0):
    net.weight.data.fill_(value)
    averager.update()
  return net, averager


def sample(averager):
  averager.update()
  # In host memory the sample is taken in behind training's back.
  averager.state_dict()


def windows(averager):
  return [
    accumulator
    for accumulator in averager.placement._accumulators.values()
    if hasattr(accumulator, '_samples')
  ]


@pytest.mark.parametrize('scheme', [Lawa(4), AUTO], ids=['lawa', 'auto'])
@pytest.mark.parametrize('placement', PLACEMENTS)
def test_a_sample_without_memory_is_lost_and_nothing_else(scheme, placement):
  net, averager = started(scheme, placement)
  (window,) = windows(averager)
  allocate, window._allocate = window._allocate, fail
  net.weight.data.fill_(100.0)
  with pytest.raises(torch.OutOfMemoryError, match='no memory'):
    sample(averager)
  window._allocate = allocate
  assert averager.samples == 2
  net.weight.data.fill_(6.0)
  averager.update()
  saved = through_a_file(averager.state_dict())
  restored = Averager(net, scheme, every=1, placement=placement)
  restored.load_state_dict(saved)
  for one in (averager, restored):
    for which in range(len(one.choice.names) or 1):
      with one.evaluating(which):
        assert net.weight.item() == 3.0


def test_a_failed_sample_in_host_memory_leaves_a_load_whole():
  _, averager = started(Lawa(4), 'cpu')
  saved = through_a_file(averager.state_dict())
  (window,) = windows(averager)
  allocate, window._allocate = window._allocate, fail
  averager.update()
  averager.step = 7
  with pytest.raises(torch.OutOfMemoryError):
    averager.load_state_dict(saved)
  assert (averager.step, averager.samples) == (7, 2)
  window._allocate = allocate
  averager.load_state_dict(saved)
  assert (averager.step, averager.samples) == (2, 2)
  assert_same(
    saved['buffers'][1].values(), averager.state_dict()['buffers'][1].values()
  )


def test_a_refused_update_counts_no_step():
  net = nn.Linear(1, 1)
  averager, other = Averager(net, Ema(0.5), every=2), Averager(net, Ema(0.5))
  other.update()
  averager.update()
  with (
    other.evaluating(),
    pytest.raises(RuntimeError, match='Another averager'),
  ):
    averager.update()
  assert averager.step == 1
  averager.update()
  assert (averager.step, averager.samples) == (2, 1)
