"""The choice among several averages: what is tried is not chosen."""

import logging

import numpy as np
import pytest
import torch
from tensors import through_a_file
from torch import nn

from weightavg import Auto, Ema, Polynomial
from weightavg.pytorch import Averager

SCHEME = Auto([Ema(0.0), Polynomial(0.0), Ema(0.5)])
# After samples of 1, 5 and 9, on raw weights of 2.
SHOWN = {-1: 2.0, 0: 9.0, 1: 5.0}


def build():
  net = nn.Linear(1, 1, bias=False)
  return net, Averager(net, SCHEME, every=1)


def trained():
  net, averager = build()
  for value in (1.0, 5.0, 9.0):
    net.weight.data.fill_(value)
    averager.update()
  net.weight.data.fill_(2.0)
  return net, averager


def resumed(net, averager):
  weights, state = through_a_file([net.state_dict(), averager.state_dict()])
  other, restored = build()
  other.load_state_dict(weights)
  restored.load_state_dict(state)
  return other, restored


@pytest.mark.parametrize('which', [np.int64(1), torch.tensor(1)])
def test_indices_of_arrays_are_saved_as_integers(which):
  net, averager = trained()
  averager.select(which)
  other, restored = resumed(net, averager)
  assert type(averager.choice.selected) is int
  with restored.evaluating():
    assert other.weight.item() == SHOWN[1]


@pytest.mark.parametrize('which', [True, 0.5, 'raw', None, -2, 3])
def test_what_is_no_index_is_refused(which):
  _, averager = trained()
  averager.select(1)
  with pytest.raises(ValueError, match=r'Must be an integer in \[-1, 3\)'):
    averager.select(which)
  assert averager.choice.selected == 1


@pytest.mark.parametrize('tried', [-1, 0, 1])
@pytest.mark.parametrize('chosen', [-1, 0, 1])
def test_a_state_saved_while_another_is_tried_keeps_the_choice(chosen, tried):
  net, averager = trained()
  averager.select(chosen)
  with averager.evaluating(tried):
    other, restored = resumed(net, averager)
    # Saved once more before the weights are back.
    again, last = resumed(other, restored)
  for one, of in ((net, averager), (other, restored), (again, last)):
    assert one.weight.item() == (
      SHOWN[tried] if of is not averager else SHOWN[-1]
    )
    of.swap_out()
    assert one.weight.item() == SHOWN[-1]
    assert of.choice.selected == chosen
    with of.evaluating():
      assert one.weight.item() == SHOWN[chosen]


@pytest.mark.parametrize('method', ['choose', 'select'])
def test_what_is_chosen_while_the_raw_weights_are_tried_holds(method):
  net, averager = trained()
  averager.select(0)
  with averager.evaluating(-1):
    if method == 'choose':
      averager.choose([1.0, 0.0, 2.0])
    else:
      averager.select(1)
  assert averager.choice.selected == 1
  with averager.evaluating():
    assert net.weight.item() == SHOWN[1]


def test_blocks_in_one_another_return_to_the_choice():
  net, averager = trained()
  averager.select(0)
  with averager.evaluating(-1), averager.evaluating(1):
    assert net.weight.item() == SHOWN[1]
  assert averager.choice.selected == 0


@pytest.mark.parametrize('chosen', [None, -1, 1])
def test_a_resumed_run_warns_only_if_nothing_was_chosen(chosen, caplog):
  net, averager = trained()
  if chosen is not None:
    averager.select(chosen)
  with averager.evaluating(0):  # a try is no choice
    _, restored = resumed(net, averager)
  restored.swap_out()
  with caplog.at_level(logging.WARNING), restored.evaluating():
    pass
  assert ('No average has been chosen' in caplog.text) == (chosen is None)


def test_a_state_of_an_earlier_version_shows_what_it_did():
  _, averager = trained()
  averager.select(1)
  state = averager.state_dict()
  del state['chosen'], state['choice_is_made']
  other, restored = build()
  restored.load_state_dict(through_a_file(state))
  with restored.evaluating():
    assert other.weight.item() == SHOWN[1]


@pytest.mark.parametrize(
  ('key', 'value'),
  [('chosen', 3), ('chosen', -2), ('chosen', 0.5), ('choice_is_made', 1)],
)
def test_a_state_of_another_choice_is_refused(key, value):
  _, averager = trained()
  state = averager.state_dict() | {key: value}
  with pytest.raises(ValueError, match=f'Invalid averager state: {key}'):
    build()[1].load_state_dict(state)
