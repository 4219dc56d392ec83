"""Running statistics refreshed at an average: the model is as before."""

import pytest
import torch
from torch import nn

from weightavg import Ema, ScheduleFree
from weightavg.pytorch import Averager, NadamW


def train_one_step(model, averager, optimizer):
  model(torch.randn(8, 3)).square().sum().backward()
  averager.before_step(optimizer)
  optimizer.step()
  averager.update()


def test_nothing_is_refreshed_before_the_first_sample():
  net = nn.BatchNorm1d(2)
  averager = Averager(net, Ema(0.5), interpolation=0.5, batch_norm='refreshed')
  with (
    pytest.raises(RuntimeError, match='Nothing is averaged yet'),
    averager.refreshing(),
  ):
    pass


@pytest.mark.parametrize('refreshes', [False, True])
def test_statistics_that_nobody_refreshes_are_warned_of_once(refreshes, caplog):
  model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
  averager = Averager(
    model, ScheduleFree(), batch_norm='refreshed', refresh_every=3
  )
  optimizer = NadamW(model.parameters(), betas=(0.0, 0.9))
  for _ in range(8):
    train_one_step(model, averager, optimizer)
    if refreshes and averager.refresh_due:
      with averager.refreshing():
        model(torch.randn(8, 3))
    with caplog.at_level('WARNING', logger='absl'), averager.evaluating():
      warned = 'Running statistics are of the first step' in caplog.text
      assert warned == (averager.step >= 3 and not refreshes)
  assert caplog.text.count('Running statistics') == (0 if refreshes else 1)


def test_refreshing_leaves_the_buffers_of_other_layers_alone():
  spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
  model = nn.Sequential(spectral, nn.BatchNorm1d(3), nn.Linear(3, 1))
  averager = Averager(
    model, ScheduleFree(), batch_norm='refreshed', refresh_every=1
  )
  optimizer = NadamW(model.parameters(), betas=(0.0, 0.9))
  train_one_step(model, averager, optimizer)
  before = {k: v.clone() for k, v in model.named_buffers()}
  with averager.refreshing():
    model(torch.randn(8, 3))
  for name, buffer in model.named_buffers():
    assert torch.equal(buffer, before[name]), name


class Counting(nn.Module):
  """Replaces its buffers in each pass."""

  def __init__(self):
    super().__init__()
    self.register_buffer('seen', torch.zeros(()))
    self.register_buffer('last', torch.zeros(3))

  def forward(self, x):
    self.seen = self.seen + 1
    self.last = x[0].detach()
    return x


def test_buffers_that_a_layer_replaces_are_put_back():
  counting = Counting()
  model = nn.Sequential(counting, nn.BatchNorm1d(3), nn.Linear(3, 1))
  averager = Averager(
    model, ScheduleFree(), batch_norm='refreshed', refresh_every=1
  )
  train_one_step(model, averager, NadamW(model.parameters(), betas=(0.0, 0.9)))
  seen, last = counting.seen, counting.last.clone()
  with averager.refreshing():
    model(torch.randn(8, 3))
    counting.last = None
  assert counting.seen is seen
  assert seen.item() == 1
  assert torch.equal(counting.last, last)


@pytest.mark.parametrize('swap', ['copy', 'exchange'])
def test_inference_mode_may_surround_it(swap):
  model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
  averager = Averager(
    model, ScheduleFree(), batch_norm='refreshed', refresh_every=1, swap=swap
  )
  optimizer = NadamW(model.parameters(), betas=(0.0, 0.9))
  for _ in range(2):
    train_one_step(model, averager, optimizer)
    with torch.inference_mode(), averager.refreshing():
      model(torch.randn(8, 3))
    with averager.evaluating(), torch.no_grad():
      model(torch.randn(8, 3))
