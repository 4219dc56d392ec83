"""Averages divided over the ranks: shares, resumption, statistics."""

import copy
import pickle
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from gloo import run_on_ranks
from hypothesis import given
from hypothesis import strategies as st
from placement_runs import (
  PLACEMENTS,
  SCHEMES,
  averager_of,
  build,
  change,
  trajectory,
  values,
  weights,
)
from tensors import assert_same
from torch import nn

from weightavg import AveragingConfig
from weightavg.pytorch import sharding
from weightavg.pytorch.sharding import Layout


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
  _layouts_may_change()
  _cannot_be_copied()
  _is_a_share(rank)


def _layouts_may_change():
  named = [('p', nn.Parameter(torch.randn(3, 4, 5, 2)))]
  averager = build(named, 'lawa', 'sharded')
  averager.update()
  before = values(named)
  named[0][1].data = named[0][1].to(memory_format=torch.channels_last)
  averager.update()
  with averager.evaluating():
    # Both samples are the same, and doubling and halving is exact.
    assert_same(values(named), before)


def _cannot_be_copied():
  averager = build(weights(), 'ema', 'sharded')
  for copies in (copy.deepcopy, pickle.dumps):
    with pytest.raises(
      RuntimeError, match=r'sharded over several ranks cannot'
    ):
      copies(averager)


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
