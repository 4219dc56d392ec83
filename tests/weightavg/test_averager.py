"""Averages against explicit sums; swaps, resume, dtypes, bad states."""

import copy
import io
import re

import numpy as np
import pytest
import torch
from references import explicit_average
from torch import nn

from weightavg import AveragingConfig
from weightavg.pytorch import Averager, NadamW, multi_tensor
from weightavg.pytorch.accumulators import build_accumulators
from weightavg.schemes import Ema, Lawa, Polynomial

averager_of = Averager.from_config

SCHEMES = {
  'lawa': {'averaging_scheme': 'lawa', 'lawa_window': 3},
  'ema': {'averaging_scheme': 'ema', 'ema_decay': 0.7},
  'polynomial': {'averaging_scheme': 'polynomial', 'averaging_power': 2.0},
  'polyak': {'averaging_scheme': 'polynomial', 'averaging_power': 0.0},
}
SWAPS = ('exchange', 'copy')


def config(scheme, every=1, **kwargs):
  return AveragingConfig.from_point(
    averaging_every_steps=every, **SCHEMES[scheme], **kwargs
  )


class Net(nn.Module):
  """Convolution, BatchNorm, a tied embedding: all kinds of weights."""

  def __init__(self):
    super().__init__()
    self.conv = nn.Conv2d(3, 4, 3, padding=1)
    self.norm = nn.BatchNorm2d(4)
    self.embedding = nn.Embedding(6, 4)
    self.out = nn.Linear(4, 6)
    self.out.weight = self.embedding.weight
    self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

  def forward(self, x):
    h = torch.relu(self.norm(self.conv(x))).mean((2, 3))
    return self.out(h + self.embedding(torch.arange(1)))


def train_step(model, optimizer, step):
  generator = torch.Generator().manual_seed(step)
  x = torch.randn(8, 3, 5, 5, generator=generator)
  y = torch.randint(0, 6, (8,), generator=generator)
  optimizer.zero_grad()
  nn.functional.cross_entropy(model(x), y).backward()
  optimizer.step()


def build(scheme, every=1, dtype=torch.float32, **kwargs):
  torch.manual_seed(0)
  model = Net().to(dtype)
  optimizer = NadamW(model.parameters(), lr=0.05)
  averager = averager_of(model, config(scheme, every, **kwargs), budget=100)
  return model, optimizer, averager


def averaged(scheme, **kwargs):
  """A model and its averager after three steps."""
  model, optimizer, averager = build(scheme, **kwargs)
  for step in range(3):
    train_step(model, optimizer, step)
    averager.update()
  return model, averager


def weights(model):
  return {k: v.detach().clone() for k, v in model.state_dict().items()}


def assert_same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert torch.equal(a[name], b[name]), name


# Literal arithmetic.


@pytest.mark.parametrize(
  ('kwargs', 'expected'),
  [
    ({'averaging_scheme': 'lawa', 'lawa_window': 2}, [1.0, 1.5, 3.0]),
    # EMA, decay 1/2: (1), (1 + 2*2)/3, (1 + 2*2 + 4*4)/7
    ({'averaging_scheme': 'ema', 'ema_decay': 0.5}, [1.0, 5 / 3, 3.0]),
    # gamma = 1: c_2 = 2/3, c_3 = 1/2
    (
      {'averaging_scheme': 'polynomial', 'averaging_power': 1.0},
      [1.0, 5 / 3, 17 / 6],
    ),
    (
      {'averaging_scheme': 'polynomial', 'averaging_power': 0.0},
      [1.0, 1.5, 7 / 3],
    ),
    # The decay of 0.2 that an int() once turned into 0:
    # (0.2^2 * 1 + 0.2 * 2 + 4) / (0.04 + 0.2 + 1)
    (
      {'averaging_scheme': 'ema', 'ema_decay': 0.2},
      [1.0, 2.2 / 1.2, 4.44 / 1.24],
    ),
  ],
)
def test_literal_three_steps(kwargs, expected):
  p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
  averager = averager_of(
    [('p', p)],
    AveragingConfig.from_point(averaging_every_steps=1, **kwargs),
    budget=3,
  )
  for value, average in zip((1.0, 2.0, 4.0), expected, strict=True):
    p.data.fill_(value)
    averager.update()
    with averager.evaluating():
      assert p.item() == pytest.approx(average, rel=1e-15)
    assert p.item() == value


@pytest.mark.parametrize('scheme', SCHEMES)
def test_constant_weights_are_their_own_average(scheme):
  p = nn.Parameter(torch.full((5,), 1.7))
  averager = averager_of([('p', p)], config(scheme), budget=50)
  for _ in range(20):
    averager.update()
    with averager.evaluating():
      # The window's mean divides a sum of three: at most one ulp.
      torch.testing.assert_close(
        p.data, torch.full((5,), 1.7), rtol=2e-7, atol=0
      )


# Invariant 4: online equals the explicit weighted sum, at every step.


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('every', [1, 3])
@pytest.mark.parametrize(
  ('dtype', 'tolerance'),
  # 20 samples: each enters with one rounding, of 2^-24 or 2^-53 relative.
  [(torch.float32, 1e-6), (torch.float64, 1e-14)],
)
def test_online_equals_explicit_sum(scheme, every, dtype, tolerance):
  generator = torch.Generator().manual_seed(3)
  ps = [
    nn.Parameter(torch.zeros(4, 3, dtype=dtype)),
    nn.Parameter(torch.zeros(2, dtype=dtype)),
  ]
  averager = averager_of(
    [('a', ps[0]), ('b', ps[1])], config(scheme, every), budget=100
  )
  samples = []
  for step in range(1, 21):
    for p in ps:
      p.data = torch.randn(p.shape, generator=generator, dtype=dtype)
    averager.update()
    if step % every == 0:
      samples.append([p.detach().clone() for p in ps])
    if not samples:
      continue
    expected = explicit_average(samples, averager.scheme.weights(len(samples)))
    with averager.evaluating():
      for p, e in zip(ps, expected, strict=True):
        torch.testing.assert_close(
          p.double(), e, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize('scheme', SCHEMES)
def test_large_tensors_cut_into_pieces_equal_whole_ones(scheme, monkeypatch):
  def run():
    torch.manual_seed(0)
    model = Net().to(memory_format=torch.channels_last)
    averager = averager_of(model, config(scheme), budget=100)
    for _ in range(4):
      with torch.no_grad():
        for p in model.parameters():
          p.add_(torch.randn(p.shape))
      averager.update()
    with averager.evaluating():
      return weights(model)

  whole = run()
  monkeypatch.setattr(multi_tensor, 'PIECE', 16)
  assert_same(whole, run())


# Invariants 1 and 2: swaps.


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
  assert_same(weights(model), shown)
  averager.swap_out()
  assert_same(weights(model), raw)
  averager.swap_out()
  assert_same(weights(model), raw)


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

  assert_same(run(evaluate=True), run(evaluate=False))


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
  assert_same(weights(model), raw)


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
    assert_same(weights(model), raw)


def test_nothing_is_sampled_before_the_start():
  p = nn.Parameter(torch.zeros(1))
  averager = averager_of(
    [('p', p)], config('polyak', averaging_start=0.5), budget=10
  )
  for step in range(1, 11):
    p.data.fill_(float(step))
    averager.update()
  with averager.evaluating():
    assert p.item() == pytest.approx((5 + 6 + 7 + 8 + 9 + 10) / 6)


def test_scheme_none_never_touches_the_model():
  model, optimizer, _ = build('ema')
  averager = averager_of(model, AveragingConfig(), budget=10)
  train_step(model, optimizer, 0)
  averager.update()
  raw = weights(model)
  with averager.evaluating():
    assert_same(weights(model), raw)
  assert averager.state_dict()['buffers'] == []


# Kinds of weights.


@pytest.mark.parametrize('swap', SWAPS)
@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_averaged_in_float32(scheme, dtype, swap):
  p = nn.Parameter(torch.zeros(3, dtype=dtype))
  averager = averager_of(
    [('p', p)], config(scheme, averaging_swap=swap), budget=10
  )
  samples = []
  for step in range(1, 6):
    p.data = torch.randn(3).to(dtype)
    samples.append([p.detach().clone()])
    averager.update()
    expected = explicit_average(samples, averager.scheme.weights(step))[0]
    with averager.evaluating():
      assert p.dtype == dtype
      # float32 rounding, then one rounding to the weights' dtype.
      torch.testing.assert_close(
        p.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6
      )
    assert torch.equal(p.data, samples[-1][0])


@pytest.mark.parametrize('scheme', [Lawa(2), Ema(0.5), Polynomial(4.0)])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_the_average_itself_is_in_float32(scheme, dtype):
  weights = [torch.ones(3, dtype=dtype)]
  (accumulator,) = build_accumulators(scheme, weights).values()
  accumulator.add(weights)
  assert accumulator.average()[0].dtype == torch.float32


@pytest.mark.parametrize('swap', SWAPS)
def test_tied_shared_and_strided_parameters(swap):
  base = torch.arange(12.0).reshape(3, 4)
  whole = nn.Parameter(base)
  part = nn.Parameter(base[1:])
  transposed = nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
  averager = averager_of(
    [('whole', whole), ('part', part), ('transposed', transposed)],
    config('polyak', averaging_swap=swap),
    budget=10,
  )
  averager.update()
  base.add_(2.0)
  averager.update()
  with averager.evaluating():
    assert torch.equal(whole.data, torch.arange(12.0).reshape(3, 4) + 1.0)
    assert torch.equal(part.data, whole.data[1:])
    assert transposed.stride() == (1, 3)
    assert torch.equal(transposed.data, torch.arange(6.0).reshape(2, 3).t())
  part.data.zero_()
  assert whole.data[1:].abs().sum() == 0  # still one storage


@pytest.mark.parametrize('swap', SWAPS)
def test_tied_parameters_stay_tied(swap):
  model, averager = averaged('lawa', averaging_swap=swap)
  with averager.evaluating():
    assert model.out.weight is model.embedding.weight


def test_running_statistics_are_current_or_averaged():
  for mode in ('current', 'averaged'):
    model, optimizer, averager = build('polyak', averaging_batch_norm=mode)
    means, variances = [], []
    for step in range(3):
      train_step(model, optimizer, step)
      averager.update()
      means.append(model.norm.running_mean.clone())
      variances.append(model.norm.running_var.clone())
    expected = means[-1] if mode == 'current' else sum(means) / 3
    with averager.evaluating():
      # Three float32 additions.
      torch.testing.assert_close(
        model.norm.running_mean, expected, rtol=1e-6, atol=1e-7
      )
      shown = variances[-1] if mode == 'current' else sum(variances) / 3
      torch.testing.assert_close(
        model.norm.running_var, shown, rtol=1e-6, atol=1e-7
      )
      assert model.norm.num_batches_tracked == 3
    assert torch.equal(model.norm.running_mean, means[-1])


class Replacing(nn.Module):
  """Replaces its statistics in each step, as AlgoPerf's speech models do."""

  def __init__(self):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(2))
    self.register_buffer('running_mean', torch.zeros(2))

  def forward(self, value):
    if self.training:
      self.running_mean = torch.full((2,), value)
    return self.weight * self.running_mean


@pytest.mark.parametrize('swap', SWAPS)
def test_statistics_that_a_layer_replaces_are_followed(swap):
  model = nn.Sequential(Replacing())
  averager = averager_of(model, config('polyak', averaging_swap=swap), budget=3)
  for value in (1.0, 2.0, 6.0):
    model(value)
    averager.update()
  with averager.evaluating():
    assert model.eval()(None).tolist() == [3.0, 3.0]
    state = averager.state_dict()
    assert state['raw']['0.running_mean'].tolist() == [6.0, 6.0]
  assert model[0].running_mean.tolist() == [6.0, 6.0]
  model.train()(5.0)
  assert model[0].running_mean.tolist() == [5.0, 5.0]


def test_a_sample_of_statistics_outlives_the_next_forward():
  model = nn.Sequential(Replacing())
  taken = []
  averager = averager_of(model, config('ema'), budget=10)
  add = averager.placement.add
  averager.placement.add = lambda tensors: (taken.append(tensors), add(tensors))
  model(1.0)
  averager.update()
  model[0].running_mean.fill_(9.0)
  assert taken[0][1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize('swap', SWAPS)
def test_pairs_may_be_aliases_of_the_weights(swap):
  model = nn.Linear(2, 1, bias=False)
  pairs = model.state_dict().items()
  averager = averager_of(pairs, config('polyak', averaging_swap=swap), budget=3)
  for value in (1.0, 2.0, 6.0):
    model.weight.data.fill_(value)
    averager.update()
  with averager.evaluating():
    assert model.weight.tolist() == [[3.0, 3.0]]
  assert model.weight.tolist() == [[6.0, 6.0]]


@pytest.mark.parametrize('swap', SWAPS)
def test_recomputed_statistics_do_not_write_to_the_average(swap):
  model, averager = averaged('ema', averaging_swap=swap)
  with averager.evaluating():
    shown = model.norm.running_mean.clone()
    batches = [torch.full((8, 3, 5, 5), 9.0)]
    torch.optim.swa_utils.update_bn(batches, model)
    assert not torch.equal(model.norm.running_mean, shown)
  with averager.evaluating():
    assert torch.equal(model.norm.running_mean, shown)


@pytest.mark.parametrize('swap', SWAPS)
def test_recomputed_statistics_leave_the_counts_of_batches_alone(swap):
  """A BatchNorm without momentum weighs its next batch by its count."""
  model, averager = averaged('ema', averaging_swap=swap)
  model.norm.momentum = None
  before = copy.deepcopy(model.norm)
  batches = [torch.full((8, 3, 5, 5), 9.0)]
  with averager.evaluating():
    torch.optim.swa_utils.update_bn(batches, model)
    assert model.norm.num_batches_tracked == 1
  assert model.norm.num_batches_tracked == before.num_batches_tracked > 1
  inputs = torch.full((8, 4, 5, 5), 2.0)
  assert torch.equal(model.norm(inputs), before(inputs))
  assert torch.equal(model.norm.running_mean, before.running_mean)


def resumed_from(saved, model_first):
  """A new model and its averager, from the states of both in either order."""
  model, averager = averaged('ema')
  pairs = list(zip((model, averager), saved, strict=True))
  for part, state in pairs if model_first else reversed(pairs):
    part.load_state_dict(state)
  return model, averager


@pytest.mark.parametrize('model_first', [False, True])
def test_a_state_without_counts_leaves_the_models_count(model_first):
  """States of earlier versions have none."""
  model, averager = averaged('ema')
  model.norm.num_batches_tracked += 7
  before = model.norm.num_batches_tracked.item()
  averager.swap_in()
  saved = copy.deepcopy([model.state_dict(), averager.state_dict()])
  del saved[1]['counters']
  resumed, other = resumed_from(saved, model_first)
  other.swap_out()
  assert resumed.norm.num_batches_tracked == before


@pytest.mark.parametrize('recompute', [False, True])
@pytest.mark.parametrize('model_first', [False, True])
def test_counts_survive_a_save_while_an_average_is_shown(
  model_first, recompute
):
  model, averager = averaged('ema')
  model.norm.num_batches_tracked += 7  # not the count of a new model
  before = model.norm.num_batches_tracked.item()
  assert 'counters' not in averager.state_dict()
  averager.swap_in()
  if recompute:
    torch.optim.swa_utils.update_bn([torch.full((8, 3, 5, 5), 9.0)], model)
  saved = copy.deepcopy([model.state_dict(), averager.state_dict()])
  resumed, other = resumed_from(saved, model_first)
  other.swap_out()
  assert resumed.norm.num_batches_tracked == before
  with pytest.raises(ValueError, match=r"state: counters=\['norm"):
    other.load_state_dict(saved[1] | {'counters': ['norm']})


def test_statistics_may_be_on_several_devices():
  model = nn.Sequential(Replacing(), Replacing().to('meta'))
  averager = averager_of(model, config('ema'), budget=3)
  model[0](1.0)
  averager.update(finite=True)
  averager.update(finite=True)
  assert averager.samples == 2


@pytest.mark.parametrize('scheme', ['none', 'ema'])
@pytest.mark.parametrize('has_statistics', [False, True])
def test_kinds_of_statistics_matter_only_where_there_are_some(
  scheme, has_statistics
):
  model = nn.BatchNorm1d(2) if has_statistics else nn.Linear(2, 1)
  chosen = AveragingConfig.from_point(averaging_scheme=scheme)
  saved = averager_of(model, chosen, budget=1000).state_dict()
  saved['recipe']['averaging_batch_norm'] = 'current'
  averager = averager_of(model, chosen, budget=1000)
  if has_statistics and scheme == 'ema':
    with pytest.raises(ValueError, match='saved with averaging_batch_norm='):
      averager.load_state_dict(saved)
  else:
    averager.load_state_dict(saved)


def test_integers_are_not_averaged():
  with pytest.raises(
    ValueError, match=r"'n' is torch.int64\. Must be floating"
  ):
    averager_of(
      [('n', torch.ones(1, dtype=torch.int64))], config('ema'), budget=1
    )


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


def test_compiled_and_wrapped_names_are_clean():
  model = Net()
  compiled = torch.compile(model, backend='eager')
  plain = averager_of(model, config('ema'), budget=10)
  wrapped = averager_of(compiled, config('ema'), budget=10)
  plain.update()
  wrapped.update()
  assert_same(
    plain.state_dict()['buffers'][0], wrapped.state_dict()['buffers'][0]
  )


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
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_samples_that_are_not_finite_never_enter(scheme, bad):
  p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
  averager = averager_of([('p', p), ('q', q)], config(scheme), budget=10)
  clean = averager_of([('p', p), ('q', q)], config(scheme), budget=10)
  for step in range(5):
    p.data.fill_(float(step))
    if step != 2:
      clean.update()
    else:
      q.data[1] = bad
    averager.update()
    q.data.fill_(float(step))
  assert (averager.skipped, averager.samples) == (1, 4)
  for a, b in zip(
    averager.state_dict()['buffers'],
    clean.state_dict()['buffers'],
    strict=True,
  ):
    assert_same(a, b)


def test_a_caller_who_knows_can_say_so():
  p = nn.Parameter(torch.ones(1))
  averager = averager_of([('p', p)], config('ema'), budget=10)
  averager.update(finite=False)
  assert (averager.skipped, averager.samples) == (1, 0)


# Invariant 3: resume.


def through_a_file(state):
  file = io.BytesIO()
  torch.save(state, file)
  file.seek(0)
  return torch.load(file, weights_only=True)


@pytest.mark.parametrize('swap', SWAPS)
@pytest.mark.parametrize('scheme', [*SCHEMES, 'none'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('stop', [0, 1, 3, 6])
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
  assert_same(weights(fresh_model), saved['model'])
  go_on(fresh_model, fresh_optimizer, fresh_averager, stop, 9)
  assert_same(end(fresh_model, fresh_averager), end(model, averager))
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
  assert_same(weights(model), raw)
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
    assert_same(a, b)


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


def test_unknown_format_is_refused():
  with pytest.raises(ValueError, match='format None'):
    build('ema')[2].load_state_dict({})


def test_two_tensors_of_one_name_are_refused():
  p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
  with pytest.raises(ValueError, match="two tensors are called 'p'"):
    averager_of([('p', p), ('p', q)], config('ema'), budget=1)


def test_budget_must_be_positive():
  with pytest.raises(ValueError, match='Invalid budget=0'):
    averager_of(Net(), config('ema'), budget=0)


# Found by a reader who tried to break it.


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


def test_parameters_that_are_not_trained_are_left_alone():
  model = nn.Linear(2, 2)
  model.mask = nn.Parameter(torch.tensor([-torch.inf]), requires_grad=False)
  averager = averager_of(model, config('lawa'), budget=10)
  averager.update()
  assert (averager.samples, averager.skipped) == (1, 0)
  with averager.evaluating():
    assert model.mask.item() == -torch.inf


def test_no_weights_are_refused():
  with pytest.raises(ValueError, match='Invalid weights: there are none'):
    averager_of([], config('ema'), budget=10)


def test_a_skipped_sample_is_remembered_across_a_resume():
  _, _, averager = build('lawa')
  averager.update(finite=False)
  for _ in range(5):
    averager.update()
  restored = build('lawa')[2]
  restored.load_state_dict(through_a_file(averager.state_dict()))
  assert (restored.skipped, restored.samples, restored.step) == (1, 5, 6)


def test_tied_parameters_in_pairs_count_once_in_training_too():
  found = []
  for as_pairs in (False, True):
    torch.manual_seed(1)
    model = nn.Sequential(
      nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    )
    model[1].weight = model[0].weight
    pairs = list(model.named_parameters(remove_duplicate=False))
    assert len(pairs) == 2
    averager = Averager(
      pairs if as_pairs else model, Ema(0.9), interpolation=0.9
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
      model(torch.ones(1, 2)).square().sum().backward()
      averager.before_step(optimizer)
      optimizer.step()
      averager.update()
      optimizer.zero_grad()
    assert list(averager.named_weights()) == ['0.weight']
    found.append(model[0].weight.detach().clone())
  assert torch.equal(*found)


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
  with pytest.raises(ValueError, match=r'which=1\. Must be in \[-1, 1\)'):
    averager.select(1)


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
