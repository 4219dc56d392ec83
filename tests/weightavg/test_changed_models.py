"""Models that change beside their averager: followed, or named."""

import copy

import pytest
import torch
from placement_runs import PLACEMENTS
from swap_models import SWAPS, model
from tensors import through_a_file
from torch import nn

from weightavg import Ema, Lawa, Polynomial
from weightavg.pytorch import Averager


def test_a_state_loads_into_parameters_that_were_replaced():
  """The raw weights went to the parameters that were gone, and were lost."""
  model = nn.Linear(1, 1, bias=False)
  averager = Averager(model, Polynomial(0.0))
  for value in (1.0, 5.0):
    model.weight.data.fill_(value)
    averager.update()
  averager.swap_in()
  saved = copy.deepcopy([model.state_dict(), averager.state_dict()])
  averager.swap_out()
  model.weight = nn.Parameter(torch.zeros(1, 1))
  model.load_state_dict(saved[0])
  averager.load_state_dict(saved[1])
  assert model.weight.item() == 3.0
  averager.swap_out()
  assert model.weight.item() == 5.0
  assert averager.named_weights()['weight'] is model.weight


def test_replaced_parameters_are_followed():
  net, averager = model(values=(1.0,))
  net.load_state_dict({'weight': torch.full((1, 1), 5.0)}, assign=True)
  averager.update()
  with averager.evaluating():
    assert net.weight.item() == 3.0
  assert net.weight.item() == 5.0
  net.weight = nn.Parameter(torch.full((1, 1), 9.0))
  averager.update()
  with averager.evaluating():
    assert net.weight.item() == 5.0


@pytest.mark.parametrize('swap', SWAPS)
def test_parameters_replaced_while_shown_get_the_raw_weights_back(swap):
  net, averager = model(swap=swap)
  with averager.evaluating():
    net.weight = nn.Parameter(net.weight.detach().clone())
    assert net.weight.item() == 3.0
  assert net.weight.item() == 5.0
  averager.update()
  with averager.evaluating():
    assert net.weight.item() == pytest.approx(11 / 3)
  assert net.weight.item() == 5.0


def change_head(net):
  net[1] = nn.Linear(2, 3)


def convert(net):
  net.double()


def move(net):
  net.to('meta')


def change_dtype(net):
  net[0].weight = nn.Parameter(net[0].weight.double())


def enlarge(net):
  net[0].weight.data = torch.ones(3, 2)


def drop(net):
  del net[1]


def unfreeze(net):
  net[2].weight.requires_grad_(True)


def grow(net):
  net.append(nn.Linear(2, 2))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (change_head, r"'1\.weight' is \(3, 2\) of torch\.float32, was \(2, 2\)"),
    (change_dtype, r"'0\.weight' is \(2, 2\) of torch\.float64, was"),
    (
      convert,
      r"'0\.weight' is \(2, 2\) of torch\.float64 on cpu, was \(2, 2\) of "
      r'torch\.float32 on cpu',
    ),
    (move, r"'0\.weight' is \(2, 2\) of torch\.float32 on meta, was \(2, 2\)"),
    (
      enlarge,
      r"'0\.weight' is \(3, 2\) of torch\.float32 on cpu, was \(2, 2\)",
    ),
    (drop, r"'1\.weight' is another, frozen parameter"),
    (unfreeze, r"'2\.weight' is trained now and is not averaged"),
    (grow, r"'3\.weight' is trained now and is not averaged"),
  ],
)
def test_other_changes_of_the_model_are_named(change, message):
  net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
  net[2].requires_grad_(False)
  averager = Averager(net, Ema(0.5))
  averager.update()
  change(net)
  with pytest.raises(RuntimeError, match=message):
    averager.update()


def test_a_new_layer_of_the_same_shapes_is_followed():
  net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1, bias=False))
  averager = Averager(net, Lawa(2), every=1)
  averager.update()
  net[1] = nn.Linear(2, 1, bias=False)
  net[0] = nn.BatchNorm1d(2)
  net[1].weight.data.fill_(7.0)
  net[0].running_mean.fill_(4.0)
  averager.update()
  averager.update()
  net[1].weight.data.fill_(0.0)
  with averager.evaluating():
    assert net[1].weight.tolist() == [[7.0, 7.0]]
    assert net[0].running_mean.tolist() == [4.0, 4.0]


def test_pairs_of_another_dtype_are_named():
  p = nn.Parameter(torch.ones(1))
  averager = Averager([('p', p)], Ema(0.5))
  averager.update()
  p.data = p.data.double()
  with pytest.raises(
    RuntimeError, match=r"'p' is \(1,\) of torch\.float64 on cpu, was"
  ):
    averager.swap_in()


@pytest.mark.parametrize('scheme', [Ema(0.5), Lawa(3)], ids=['ema', 'lawa'])
@pytest.mark.parametrize('placement', PLACEMENTS)
@pytest.mark.parametrize('swap', SWAPS)
def test_a_model_may_be_made_channels_last_between_samples(
  scheme, placement, swap
):
  torch.manual_seed(0)
  net = nn.Conv2d(3, 4, 3)
  averager = Averager(net, scheme, every=1, placement=placement, swap=swap)
  samples = []
  for step in range(3):
    with torch.no_grad():
      net.weight.add_(torch.randn_like(net.weight))
    samples.append(net.weight.detach().double())
    averager.update()
    if step == 0:
      net.to(memory_format=torch.channels_last)
  assert net.weight.stride() != torch.empty(4, 3, 3, 3).stride()
  expected = sum(w * x for w, x in zip(scheme.weights(3), samples, strict=True))
  saved = through_a_file(averager.state_dict())
  other = nn.Conv2d(3, 4, 3)
  other.load_state_dict(net.state_dict())
  restored = Averager(other, scheme, every=1, placement=placement)
  restored.load_state_dict(saved)
  for one, a in ((net, averager), (other, restored)):
    with a.evaluating():
      # Three roundings of numbers below 4.
      torch.testing.assert_close(
        one.weight.double(), expected, rtol=0, atol=1e-6
      )
    assert torch.equal(one.weight.double(), samples[-1])


def test_weights_without_a_shape_are_refused():
  with pytest.raises(ValueError, match=r"'weight' has no shape yet\. Call"):
    Averager(nn.LazyLinear(2), Ema(0.5))


@pytest.mark.parametrize(
  ('weights', 'kind'),
  [
    (nn.Linear(2, 2).parameters(), 'Parameter'),
    (nn.Linear(2, 2).state_dict(), 'str'),
    (None, 'NoneType'),
  ],
)
def test_what_is_no_model_and_has_no_names_is_refused(weights, kind):
  with pytest.raises(
    ValueError, match=rf'found a {kind}\. Must be a model, or'
  ):
    Averager(weights, Ema(0.5))


def test_the_model_is_no_argument_of_update():
  """Other libraries take it; here it would switch the look for NaN off."""
  net, averager = model()
  with pytest.raises(TypeError, match='positional'):
    averager.update(net)


def test_a_spectral_norms_vectors_stay_those_of_the_live_model():
  net = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2))
  averager = Averager(net, Ema(0.5))
  for step in range(3):
    torch.manual_seed(step)
    net.parametrizations.weight.original.data.normal_()
    before = net.parametrizations.weight[0]._u.clone()
    net(torch.randn(4, 3))
    assert not torch.equal(net.parametrizations.weight[0]._u, before)
    averager.update()
  u = net.parametrizations.weight[0]._u.clone()
  with averager.evaluating():
    assert torch.equal(net.parametrizations.weight[0]._u, u)
