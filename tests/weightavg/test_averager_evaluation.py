"""Evaluations: swaps give every bit back, and leave training alone."""

import copy

import pytest
import torch
from averager_runs import (
  SCHEMES,
  SWAPS,
  averager_of,
  build,
  config,
  train_step,
  weights,
)
from tensors import assert_same_by_name
from torch import nn

from weightavg.pytorch import Averager
from weightavg.schemes import Ema


@pytest.mark.parametrize('swap', SWAPS)
@pytest.mark.parametrize('scheme', SCHEMES)
def test_swap_in_and_out_gives_back_every_bit(scheme, swap):
  model, optimizer, averager = build(scheme, averaging_swap=swap)
  for step in range(4):
    train_step(model, optimizer, step)
    averager.update()
  raw = weights(model)
  averager.swap_in()
  shown = weights(model)
  assert not torch.equal(shown['conv.weight'], raw['conv.weight'])
  averager.swap_in()
  assert_same_by_name(weights(model), shown)
  averager.swap_out()
  assert_same_by_name(weights(model), raw)
  averager.swap_out()
  assert_same_by_name(weights(model), raw)


@pytest.mark.parametrize('swap', SWAPS)
@pytest.mark.parametrize('scheme', SCHEMES)
def test_training_with_evaluations_equals_training_without(scheme, swap):
  def run(evaluate):
    model, optimizer, averager = build(scheme, every=2, averaging_swap=swap)
    for step in range(9):
      train_step(model, optimizer, step)
      averager.update()
      if evaluate:
        with averager.evaluating():
          model.eval()(torch.randn(2, 3, 5, 5))
        model.train()
    with averager.evaluating():
      return weights(model)

  assert_same_by_name(run(evaluate=True), run(evaluate=False))


def test_exchange_copies_nothing():
  model, _, averager = build('ema')
  averager.update()
  raw = model.conv.weight.data_ptr()
  averager.swap_in()
  average = averager.state_dict()['buffers'][0]['conv.weight']
  assert model.conv.weight.data_ptr() == average.data_ptr()
  averager.swap_out()
  assert model.conv.weight.data_ptr() == raw


def test_copy_leaves_storages_in_place():
  model, _, averager = build('ema', averaging_swap='copy')
  averager.update()
  raw = model.conv.weight.data_ptr()
  with averager.evaluating():
    assert model.conv.weight.data_ptr() == raw


def test_raw_weights_return_when_evaluation_fails():
  model, optimizer, averager = build('polyak')
  for step in range(2):
    train_step(model, optimizer, step)
    averager.update()
  raw = weights(model)
  with pytest.raises(KeyError), averager.evaluating():
    raise KeyError
  assert_same_by_name(weights(model), raw)


def test_update_refuses_while_the_average_is_shown():
  _, _, averager = build('ema')
  averager.update()
  averager.swap_in()
  with pytest.raises(RuntimeError, match=r'Call swap_out\(\)'):
    averager.update()


def test_before_the_first_sample_evaluation_sees_the_raw_weights():
  model, optimizer, averager = build('ema', every=4)
  train_step(model, optimizer, 0)
  averager.update()
  raw = weights(model)
  with averager.evaluating():
    assert not averager.swapped
    assert_same_by_name(weights(model), raw)


def test_compiled_model_is_evaluated_with_the_average():
  model, optimizer, averager = build('polyak')
  compiled = torch.compile(model, backend='eager')
  for step in range(3):
    train_step(compiled, optimizer, step)
    averager.update()
  x = torch.randn(2, 3, 5, 5)
  model.eval()
  with averager.evaluating():
    expected = copy.deepcopy(model)(x)
    assert torch.equal(compiled(x), expected)
  assert not torch.equal(compiled(x), expected)


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('swap', SWAPS)
def test_evaluation_may_run_in_inference_mode(scheme, swap):
  p = nn.Parameter(torch.zeros(1))
  averager = averager_of(
    [('p', p)], config(scheme, averaging_swap=swap), budget=10
  )
  shown = []
  for value in (1.0, 2.0):
    p.data.fill_(value)
    averager.update()
    with torch.inference_mode(), averager.evaluating():
      shown.append(p.item())
  with averager.evaluating():
    assert p.item() == shown[-1]
  (p * 2).backward()
  assert p.item() == 2.0


def test_evaluations_nest():
  p = nn.Parameter(torch.zeros(1))
  averager = averager_of([('p', p)], config('polyak'), budget=10)
  for value in (1.0, 2.0):
    p.data.fill_(value)
    averager.update()
  with averager.evaluating():
    with averager.evaluating():
      pass
    assert p.item() == 1.5
  assert p.item() == 2.0


def test_half_a_swap_can_be_undone(monkeypatch):
  p, q = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
  averager = averager_of([('p', p), ('q', q)], config('polyak'), budget=10)
  for value in (1.0, 2.0):
    p.data.fill_(value)
    averager.update()
  shown = averager.placement.shown
  # An average of another dtype cannot be put into the second parameter.
  monkeypatch.setattr(
    averager.placement,
    'shown',
    lambda tensors, which: [
      shown(tensors, which)[0],
      torch.zeros(1, dtype=torch.int64),
    ],
  )
  with pytest.raises(RuntimeError), averager.evaluating():
    pass
  assert (p.item(), q.item(), averager.swapped) == (2.0, 0.0, False)


def test_a_single_average_can_be_left_out_and_selected_again():
  model = nn.Linear(1, 1, bias=False)
  averager = Averager(model, Ema(0.5))
  for value in (0.0, 3.0):
    model.weight.data.fill_(value)
    averager.update()
  averager.select(-1)
  with averager.evaluating():
    assert model.weight.item() == 3.0
  averager.select(0)
  with averager.evaluating():
    assert model.weight.item() == 2.0  # (0.5 * 0 + 1 * 3) / 1.5
  with pytest.raises(
    ValueError, match=r'which=1\. Must be an integer in \[-1, 1\)'
  ):
    averager.select(1)
