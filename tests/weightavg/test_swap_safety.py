"""Ways to misuse a swap: each raises before it writes, or does no harm."""

import copy
import re

import pytest
import torch
from torch import nn

from weightavg import Ema, Lawa, Polynomial
from weightavg.pytorch import Averager, NadamW

SWAPS = ('copy', 'exchange')


def model(values=(1.0, 5.0), swap='copy', **options):
  """A weight that was 1 and is 5; its average is 3."""
  net = nn.Linear(1, 1, bias=False)
  averager = Averager(net, Polynomial(0.0), swap=swap, **options)
  for value in values:
    net.weight.data.fill_(value)
    averager.update()
  return net, averager


@pytest.mark.parametrize('swap', SWAPS)
def test_autocast_sees_the_swap(swap):
  net, averager = model(swap=swap)
  x = torch.ones(1, 1)
  with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
    assert net(x).item() == 5.0
    with averager.evaluating():
      assert net(x).item() == 3.0
    assert net(x).item() == 5.0


@pytest.mark.parametrize('first', SWAPS)
@pytest.mark.parametrize('second', SWAPS)
def test_a_second_averager_is_refused_while_the_first_shows(first, second):
  net, one = model(swap=first)
  other = Averager(net, Ema(0.5), swap=second)
  other.update()
  with one.evaluating():
    with pytest.raises(RuntimeError, match=r'Another averager shows.*swap_in'):
      other.swap_in()
    with pytest.raises(RuntimeError, match=r'Another averager shows.*update'):
      other.update()
    assert net.weight.item() == 3.0
  with other.evaluating():
    assert net.weight.item() == 5.0
  assert net.weight.item() == 5.0


def test_an_averager_that_is_gone_blocks_no_other():
  net, one = model()
  one.swap_in()
  other = Averager(net, Ema(0.5))
  del one
  other.update()
  with other.evaluating():
    assert net.weight.item() == 3.0


@pytest.mark.parametrize('swap', SWAPS)
@pytest.mark.parametrize('kind', [torch.optim.AdamW, NadamW])
def test_an_optimizers_step_is_refused_before_it_writes(kind, swap):
  net, averager = model(swap=swap)
  optimizer = kind(net.parameters(), lr=0.1)
  net.weight.grad = torch.ones(1, 1)
  with averager.evaluating():
    with pytest.raises(RuntimeError, match=r'swap_out\(\) before a step'):
      optimizer.step()
    assert net.weight.item() == 3.0
  assert net.weight.item() == 5.0
  with averager.evaluating():
    assert net.weight.item() == 3.0
  optimizer.step()
  assert net.weight.item() != 5.0


def test_another_models_step_is_not_refused():
  _, averager = model()
  other = nn.Linear(1, 1)
  optimizer = torch.optim.SGD(other.parameters(), lr=1.0)
  other.weight.grad = torch.ones(1, 1)
  with averager.evaluating():
    optimizer.step()


@pytest.mark.parametrize('swap', SWAPS)
@pytest.mark.parametrize('assign', [False, True])
def test_loading_is_refused_before_it_writes(assign, swap):
  net, averager = model(swap=swap)
  whole = nn.Sequential(net)
  state = {'0.weight': torch.full((1, 1), 9.0)}
  with averager.evaluating():
    for target, given in ((whole, state), (net, {'weight': state['0.weight']})):
      with pytest.raises(RuntimeError, match=re.escape('weight is loaded')):
        target.load_state_dict(given, assign=assign)
    assert net.weight.item() == 3.0
  with averager.evaluating():
    assert net.weight.item() == 3.0
  net.load_state_dict({'weight': state['0.weight']})
  assert net.weight.item() == 9.0


def test_a_restored_run_may_load_the_average_that_it_shows():
  net, averager = model()
  averager.swap_in()
  saved = copy.deepcopy([net.state_dict(), averager.state_dict()])
  fresh, restored = model(values=())
  restored.load_state_dict(saved[1])
  fresh.load_state_dict(saved[0])
  assert restored.swapped
  assert fresh.weight.item() == 3.0
  restored.swap_out()
  assert fresh.weight.item() == 5.0


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


def test_a_copy_made_while_shown_is_free():
  net, averager = model()
  with averager.evaluating():
    twin = copy.deepcopy(net)
    twin.load_state_dict({'weight': torch.zeros(1, 1)})
  assert twin.weight.item() == 0.0
  assert not net._load_state_dict_pre_hooks


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


def change_head(net):
  net[1] = nn.Linear(2, 3)


def change_dtype(net):
  net[0].weight = nn.Parameter(net[0].weight.double())


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


def test_parameters_without_names_are_refused():
  with pytest.raises(
    ValueError, match=r'found a Parameter\. Must be a model, or'
  ):
    Averager(nn.Linear(2, 2).parameters(), Ema(0.5))


def test_a_spectral_norms_vectors_stay_those_of_the_live_model():
  net = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2))
  averager = Averager(net, Ema(0.5))
  for step in range(3):
    torch.manual_seed(step)
    net(torch.randn(4, 3)).sum().backward()
    averager.update()
  u = net.parametrizations.weight[0]._u.clone()
  with averager.evaluating():
    assert torch.equal(net.parametrizations.weight[0]._u, u)
