"""Ten complaints about weight averages in other libraries, one test each."""

import copy
import functools
import io

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from weightavg import Ema, Lawa, Polynomial
from weightavg.pytorch import Averager


def line(dtype=torch.float32):
  return nn.Linear(1, 1, bias=False).to(dtype)


def follow(model, averager, *values):
  for value in values:
    model.weight.data.fill_(value)
    averager.update()


def through_a_file(*states):
  file = io.BytesIO()
  torch.save(states, file)
  file.seek(0)
  return torch.load(file, weights_only=True)


def test_the_counter_is_in_the_state_so_that_a_resume_restarts_no_warm_up():
  model = line()
  averager = Averager(model, Ema(0.9))
  follow(model, averager, 1.0, 2.0, 3.0)
  weights, saved = through_a_file(model.state_dict(), averager.state_dict())
  fresh = line()
  fresh.load_state_dict(weights)
  restored = Averager(fresh, Ema(0.9))
  restored.load_state_dict(saved)
  follow(model, averager, 9.0)
  follow(fresh, restored, 9.0)
  with averager.evaluating(), restored.evaluating():
    assert fresh.weight.item() == model.weight.item()
    # Started anew it would be the last sample.
    assert fresh.weight.item() < 5.0


@pytest.mark.parametrize('swap', ['copy', 'exchange'])
def test_a_checkpoint_written_during_validation_resumes_from_the_raw_weights(
  swap,
):
  model = line()
  averager = Averager(model, Polynomial(0.0), swap=swap)
  follow(model, averager, 1.0, 5.0)
  averager.swap_in()
  weights, saved = through_a_file(model.state_dict(), averager.state_dict())
  assert weights['weight'].item() == 3.0
  fresh = line()
  fresh.load_state_dict(weights)
  restored = Averager(fresh, Polynomial(0.0), swap=swap)
  restored.load_state_dict(saved)
  restored.swap_out()
  assert fresh.weight.item() == 5.0


def test_validation_before_the_first_sample_sees_the_raw_weights():
  model = line()
  model.weight.data.fill_(7.0)
  averager = Averager(model, Ema(0.999), start=100)
  averager.update()
  with averager.evaluating():
    assert model.weight.item() == 7.0
  assert averager.averaged_state_dict()['weight'].item() == 7.0


class Uncopyable(nn.Module):
  """Refuses a deepcopy, as a model sharded by FullyShardedDataParallel does."""

  def __init__(self):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(1))

  def __deepcopy__(self, memo):
    raise RuntimeError('This model cannot be copied.')


def test_no_average_needs_a_copy_of_the_model():
  model = Uncopyable()
  averager = Averager(model, Polynomial(0.0))
  follow(model, averager, 1.0, 3.0)
  with averager.evaluating():
    assert model.weight.item() == 2.0
  other = Uncopyable()
  averager.copy_to(other)
  assert other.weight.item() == 2.0
  with pytest.raises(RuntimeError, match='cannot be copied'):
    AveragedModel(model)


def test_a_bfloat16_model_has_an_average_that_moves():
  model = line(torch.bfloat16)
  averager = Averager(model, Ema(0.999))
  theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
  follow(model, averager, 1.0)
  theirs.update_parameters(model)
  for _ in range(2000):
    follow(model, averager, 2.0)
    theirs.update_parameters(model)
  # A step of 0.001 is less than half of bfloat16's spacing at 1, 0.0078.
  assert theirs.module.weight.item() == 1.0
  with averager.evaluating():
    assert model.weight.item() > 1.8


@pytest.mark.parametrize(
  'wrap', [functools.partial(torch.compile, backend='eager'), nn.DataParallel]
)
def test_prefixes_of_wrappers_skip_no_update(wrap):
  model = line()
  averager = Averager(wrap(model), Polynomial(0.0))
  follow(model, averager, 1.0, 3.0)
  assert list(averager.state_dict()['buffers'][0]) == ['weight']
  with averager.evaluating():
    assert model.weight.item() == 2.0
  # The state of a wrapped model's averager is that of the model's.
  bare = Averager(line(), Polynomial(0.0))
  bare.load_state_dict(averager.state_dict())
  assert bare.averaged_state_dict()['weight'].item() == 2.0


@pytest.mark.parametrize('swap', ['copy', 'exchange'])
def test_a_compiled_model_sees_the_swap(swap):
  model = line()
  compiled = torch.compile(model, backend='eager')
  averager = Averager(compiled, Polynomial(0.0), swap=swap)
  follow(model, averager, 1.0, 5.0)
  with torch.no_grad():
    assert compiled(torch.ones(1, 1)).item() == 5.0
    with averager.evaluating():
      assert compiled(torch.ones(1, 1)).item() == 3.0
    assert compiled(torch.ones(1, 1)).item() == 5.0


def test_batch_norms_statistics_belong_to_the_weights_that_are_shown():
  model = nn.BatchNorm1d(1)
  averager = Averager(model, Polynomial(0.0))
  for value in (1.0, 5.0):
    model.weight.data.fill_(value)
    model.running_mean.fill_(10 * value)
    model.num_batches_tracked += 1
    averager.update()
  with averager.evaluating():
    assert (model.weight.item(), model.running_mean.item()) == (3.0, 30.0)
    assert model.num_batches_tracked == 2
  assert (model.weight.item(), model.running_mean.item()) == (5.0, 50.0)


def test_going_back_before_saving_cannot_be_forgotten():
  """A run that saves in the middle of a swap trains on as if it had not."""
  model = line()
  averager = Averager(model, Polynomial(0.0))
  follow(model, averager, 1.0, 5.0)
  averager.swap_in()
  saved = copy.deepcopy([model.state_dict(), averager.state_dict()])
  optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
  model.weight.grad = torch.ones(1, 1)
  with pytest.raises(RuntimeError, match=r'Call swap_out\(\)'):
    optimizer.step()
  restored = Averager(line(), Polynomial(0.0))
  restored.load_state_dict(saved[1])
  assert restored.swapped
  with pytest.raises(RuntimeError, match=r'Call swap_out\(\)'):
    restored.update()


class Reads(TorchDispatchMode):
  """Counts operations that read a number back from a device."""

  count = 0

  def __torch_dispatch__(self, function, types, args=(), kwargs=None):
    if function is torch.ops.aten._local_scalar_dense.default:
      self.count += 1
    return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('scheme', [Ema(0.5), Lawa(2)])
def test_no_update_synchronises_with_the_device(scheme):
  model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20))).to('meta')
  averager = Averager(model, scheme, every=1)
  averager.update(finite=True)
  with Reads() as reads:
    averager.update()
  assert reads.count == 0
  # The counter does count: on a CPU there is no device to wait for.
  model = nn.Linear(2, 2)
  averager = Averager(model, scheme, every=1)
  with Reads() as reads:
    averager.update()
  assert reads.count > 0
