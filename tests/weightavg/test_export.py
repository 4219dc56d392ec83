"""The average without a swap: states, copies, models."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tied_models import Tied, trained
from torch import nn

from weightavg import Auto, Ema, Lawa, Polynomial
from weightavg.pytorch import Averager

SCHEMES = {
  'ema': (Ema(0.5), {}),
  'lawa': (Lawa(2), {'every': 1}),
  'polynomial': (Polynomial(1.0), {}),
}


def compiled(model):
  return torch.compile(model, backend='eager')


@pytest.mark.parametrize('wrap', [None, nn.DataParallel, compiled])
@pytest.mark.parametrize('name', SCHEMES)
def test_the_state_is_what_a_swap_shows(name, wrap):
  scheme, options = SCHEMES[name]
  model, averager = trained(scheme, wrap=wrap, **options)
  raw = copy.deepcopy(model.state_dict())
  state = averager.averaged_state_dict()
  with averager.evaluating():
    assert list(state) == list(model.state_dict())
    for key, value in model.state_dict().items():
      assert torch.equal(state[key], value), key
    assert not torch.equal(state['head.weight'], raw['head.weight'])
    during = averager.averaged_state_dict()
  for key, value in raw.items():
    assert torch.equal(model.state_dict()[key], value), key
    assert torch.equal(during[key], state[key]), key


def test_the_state_shares_no_memory_and_goes_through_safetensors(tmp_path):
  model, averager = trained(Ema(0.5))
  state = averager.averaged_state_dict()
  pointers = [t.data_ptr() for t in state.values()]
  assert len(set(pointers)) == len(pointers)
  save_file(state, tmp_path / 'average.safetensors')
  fresh = Tied()
  fresh.load_state_dict(load_file(tmp_path / 'average.safetensors'))
  with averager.evaluating():
    assert torch.equal(fresh.head.weight, model.head.weight)
  assert fresh.head.weight is fresh.embedding.weight


def halve(module, state, prefix, metadata):
  del module, metadata
  for key in [key for key in state if key.startswith(prefix)]:
    state[key] = state[key].half()


@pytest.mark.parametrize('is_shown', [False, True])
def test_a_hook_that_casts_the_state_casts_the_average(is_shown):
  model, averager = trained(Ema(0.5))
  plain = averager.averaged_state_dict()
  model.register_state_dict_post_hook(halve)
  raw = model.state_dict()
  if is_shown:
    averager.swap_in()
  state = averager.averaged_state_dict()
  assert averager.swapped == is_shown
  averager.swap_out()
  for key, value in plain.items():
    assert torch.equal(state[key], value.half()), key
    assert torch.equal(model.state_dict()[key], raw[key]), key
  assert not torch.equal(state['head.weight'], raw['head.weight'])


def test_before_the_first_sample_the_state_is_the_models_own():
  model, averager = trained(Ema(0.5), steps=0)
  for key, value in averager.averaged_state_dict().items():
    assert torch.equal(value, model.state_dict()[key])


def test_a_copy_follows_the_choice_and_leaves_the_model_alone():
  model, averager = trained(Auto([Ema(0.5), Ema(0.0)]))
  averager.choose([0.0, 1.0])
  other = compiled(Tied())
  averager.copy_to(other)
  result = averager.averaged_model()
  assert not result.training
  assert model.training
  assert not averager.swapped
  with averager.evaluating():
    assert torch.equal(result.head.weight, model.head.weight)
    assert torch.equal(other.head.weight, model.head.weight)
  assert not torch.equal(result.head.weight, model.head.weight)


def test_tensors_alone_have_no_state_dict():
  averager = Averager([('p', torch.ones(1))], Ema(0.5))
  with pytest.raises(RuntimeError, match='built from tensors'):
    averager.averaged_state_dict()


@pytest.mark.parametrize(
  ('other', 'message'),
  [
    (lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), r'1.weight. has'),
    (lambda: nn.Sequential(nn.Linear(2, 3)), r"lacks tensor '1\.bias'"),
    (
      lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(1, 1)),
      r"has the unknown tensor '2\.bias'",
    ),
  ],
)
def test_another_architecture_gets_nothing_of_an_average(other, message):
  model, target = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), other()
  before = {k: v.clone() for k, v in target.state_dict().items()}
  averager = Averager(model, Ema(0.5))
  averager.update()
  with pytest.raises(ValueError, match='Invalid model: .*' + message):
    averager.copy_to(target)
  for name, value in target.state_dict().items():
    assert torch.equal(value, before[name])


class Noted(nn.Linear):
  """A layer that keeps a note beside its tensors, as extra state."""

  def __init__(self, note):
    super().__init__(2, 1)
    self.note = note

  def get_extra_state(self):
    return self.note

  def set_extra_state(self, state):
    self.note = state


class Renamed(nn.Linear):
  """A layer that saves its tensors under other names, for another library."""

  def state_dict(self, *args, **kwargs):
    full = super().state_dict(*args, **kwargs)
    return {f'theirs.{name}': tensor for name, tensor in full.items()}


def test_the_model_itself_and_its_copy_need_no_state_dict():
  model = Renamed(2, 1)
  averager = Averager(model, Ema(0.5))
  for value in (0.0, 3.0):
    for parameter in model.parameters():
      parameter.data.fill_(value)
    averager.update()
  # (0.25 * 0 + 0.5 * 3) / 0.75
  assert averager.averaged_model().weight.tolist() == [[2.0, 2.0]]
  assert model.weight.tolist() == [[3.0, 3.0]]
  averager.copy_to(model)
  assert model.weight.tolist() == [[2.0, 2.0]]


def test_a_layers_extra_state_is_copied_with_the_average():
  averager = Averager(Noted('trained'), Ema(0.5))
  averager.update()
  target = Noted('new')
  averager.copy_to(target)
  assert target.note == 'trained'
  with pytest.raises(
    ValueError, match=r"'_extra_state' is a Tensor\. Must be no tensor\."
  ):
    averager.copy_to(Noted(torch.zeros(3)))
