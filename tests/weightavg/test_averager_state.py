"""States of an averager: resumed bit for bit, or refused."""

import copy
import io
import re

import numpy as np
import pytest
import torch
from averager_runs import (
  SCHEMES,
  SWAPS,
  Net,
  averager_of,
  build,
  config,
  train_step,
  weights,
)
from tensors import assert_same_by_name, through_a_file
from torch import nn

from weightavg import AveragingConfig
from weightavg.pytorch import Averager
from weightavg.schemes import Ema, Lawa, Polynomial


@pytest.mark.parametrize('swap', SWAPS)
def test_an_averager_may_load_its_own_state_while_the_average_is_shown(swap):
  model = nn.Linear(1, 1, bias=False)
  averager = averager_of(model, config('polyak', averaging_swap=swap), budget=2)
  for value in (1.0, 3.0):
    model.weight.data.fill_(value)
    averager.update()
  averager.swap_in()
  averager.load_state_dict(averager.state_dict())
  assert model.weight.item() == 2.0
  averager.swap_out()
  assert model.weight.item() == 3.0


@pytest.mark.parametrize('swap', SWAPS)
@pytest.mark.parametrize('scheme', [*SCHEMES, 'none'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
  'stop', [0, pytest.param(1, marks=pytest.mark.slow), 3, 6]
)
@pytest.mark.parametrize('shown', [False, True])
@pytest.mark.parametrize('model_first', [False, True])
def test_resume_is_bit_identical(scheme, dtype, stop, shown, model_first, swap):
  def start():
    if scheme == 'none':
      model, optimizer, _ = build('ema', dtype=dtype)
      return (
        model,
        optimizer,
        averager_of(model, AveragingConfig(), budget=100),
      )
    return build(scheme, every=2, dtype=dtype, averaging_swap=swap)

  def go_on(model, optimizer, averager, first, last):
    averager.swap_out()
    for step in range(first, last):
      for p in model.parameters():
        generator = torch.Generator().manual_seed(step)
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
      optimizer.step()
      averager.update()

  def end(model, averager):
    raw = weights(model)
    averager.swap_in()
    return raw | {f'shown {k}': v for k, v in weights(model).items()}

  model, optimizer, averager = start()
  go_on(model, optimizer, averager, 0, stop)
  if shown:
    averager.swap_in()
  saved = through_a_file(
    {
      'model': model.state_dict(),
      'optimizer': optimizer.state_dict(),
      'averager': averager.state_dict(),
    }
  )
  go_on(model, optimizer, averager, stop, 9)

  fresh_model, fresh_optimizer, fresh_averager = start()
  with torch.no_grad():
    for p in fresh_model.parameters():
      p.fill_(9.0)
  if model_first:
    fresh_model.load_state_dict(saved['model'])
  fresh_optimizer.load_state_dict(saved['optimizer'])
  fresh_averager.load_state_dict(saved['averager'])
  if not model_first:
    fresh_model.load_state_dict(saved['model'])
  assert_same_by_name(weights(fresh_model), saved['model'])
  go_on(fresh_model, fresh_optimizer, fresh_averager, stop, 9)
  assert_same_by_name(end(fresh_model, fresh_averager), end(model, averager))
  assert fresh_averager.step == averager.step


def test_restoring_over_a_swapped_averager():
  model, optimizer, averager = build('lawa')
  train_step(model, optimizer, 0)
  averager.update()
  saved = through_a_file([weights(model), averager.state_dict()])
  raw = weights(model)
  train_step(model, optimizer, 1)
  averager.update()
  averager.swap_in()
  averager.load_state_dict(saved[1])
  model.load_state_dict(saved[0])
  assert_same_by_name(weights(model), raw)
  assert (averager.step, averager.samples) == (1, 1)


@pytest.mark.parametrize(
  ('other', 'message'),
  [
    (config('ema'), "saved with averaging_scheme='lawa'"),
    (config('lawa', every=2), 'saved with every=1, this averager has every=2'),
    (
      AveragingConfig.from_point(
        averaging_scheme='lawa', lawa_window=4, averaging_every_steps=1
      ),
      'saved with window=3, this averager has window=4',
    ),
  ],
)
def test_states_of_other_averagers_are_refused(other, message):
  _, _, averager = build('lawa')
  averager.update()
  averager.swap_in()
  state = averager.state_dict()
  target = averager_of(Net(), other, budget=100)
  target.update()
  before = copy.deepcopy(target.state_dict())
  with pytest.raises(ValueError, match=re.escape(message)):
    target.load_state_dict(state)
  after = target.state_dict()
  assert (after['step'], after['samples']) == (1, before['samples'])
  for a, b in zip(after['buffers'], before['buffers'], strict=True):
    assert_same_by_name(a, b)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda d: d.pop('out.bias'), "lacks tensor 'out.bias'"),
    (lambda d: d.update(more=torch.ones(1)), "has the unknown tensor 'more'"),
    (
      lambda d: d.update({'out.bias': torch.ones(7)}),
      "'out.bias' has shape (7,). Must be (6,)",
    ),
  ],
)
@pytest.mark.parametrize('part', ['buffers', 'raw'])
def test_states_of_other_models_are_refused(change, message, part):
  _, _, averager = build('ema')
  averager.update()
  averager.swap_in()
  state = averager.state_dict()
  change(state['raw'] if part == 'raw' else state['buffers'][0])
  with pytest.raises(ValueError, match=re.escape(message)):
    build('ema')[2].load_state_dict(state)


def test_what_is_no_dict_is_refused():
  with pytest.raises(ValueError, match=r'Invalid averager state: a NoneType\.'):
    Averager(nn.Linear(1, 1), Ema(0.5)).load_state_dict(None)


def test_unknown_format_is_refused():
  with pytest.raises(ValueError, match='format None'):
    build('ema')[2].load_state_dict({})


def test_two_tensors_of_one_name_are_refused():
  p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
  with pytest.raises(ValueError, match="two tensors are called 'p'"):
    averager_of([('p', p), ('p', q)], config('ema'), budget=1)


@pytest.mark.parametrize(
  ('scheme', 'arguments'),
  [
    (Ema(np.float64(0.5)), {}),
    (Ema(np.float32(0.5)), {}),
    (Polynomial(np.float64(2.0)), {}),
    (Lawa(np.int64(3)), {'every': np.int64(2), 'start': np.int32(1)}),
    (Ema(horizon=0.1), {'total_steps': np.int64(100)}),
    (Ema(0.5), {'interpolation': np.float64(0.9)}),
    (Ema(0.5), {'interpolation': np.float32(0.5)}),
    (
      Ema(0.5),
      {
        'interpolation': 0.9,
        'batch_norm': 'refreshed',
        'refresh_every': np.int64(2),
      },
    ),
  ],
)
def test_numbers_of_numpy_are_saved_as_plain_ones(scheme, arguments):
  model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
  averager = Averager(model, scheme, **arguments)
  file = io.BytesIO()
  torch.save(averager.state_dict(), file)
  file.seek(0)
  averager.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda s: s.pop('step'), 'step=None. Must be int'),
    (lambda s: s.update(samples=-1), 'samples=-1. Must be int'),
    (lambda s: s.update(recipe=None), 'recipe=None. Must be dict'),
    (lambda s: s.update(buffers=[]), '0 buffers for 1 samples. Must be 1'),
    (
      lambda s: s['buffers'][0].update({'out.bias': 3}),
      "'out.bias' is a int. Must be a tensor",
    ),
  ],
)
def test_malformed_states_change_nothing(change, message):
  _, _, averager = build('ema')
  averager.update()
  state = averager.state_dict()
  change(state)
  target = build('ema')[2]
  with pytest.raises(ValueError, match=re.escape(message)):
    target.load_state_dict(state)
  assert (target.step, target.samples) == (0, 0)


def test_a_skipped_sample_is_remembered_across_a_resume():
  _, _, averager = build('lawa')
  averager.update(finite=False)
  for _ in range(5):
    averager.update()
  restored = build('lawa')[2]
  restored.load_state_dict(through_a_file(averager.state_dict()))
  assert (restored.skipped, restored.samples, restored.step) == (1, 5, 6)


def test_averages_in_host_memory_are_copied_with_their_model():
  model = nn.Linear(2, 1)
  averager = Averager(model, Ema(0.5), placement='cpu')
  averager.update()
  other, copied = copy.deepcopy((model, averager))
  with torch.no_grad():
    other.weight.add_(1.0)
  copied.update()
  assert (averager.samples, copied.samples) == (1, 2)
  with averager.evaluating(), copied.evaluating():
    difference = other.weight - model.weight
  torch.testing.assert_close(difference, torch.full((1, 2), 2 / 3))
