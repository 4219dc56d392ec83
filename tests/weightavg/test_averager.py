"""Averages against explicit sums and literal arithmetic; kinds of weights."""

import pytest
import torch
from averager_runs import (
  SCHEMES,
  SWAPS,
  Net,
  averaged,
  averager_of,
  build,
  config,
  train_step,
  weights,
)
from references import explicit_average
from tensors import assert_same_by_name
from torch import nn

from weightavg import AveragingConfig
from weightavg.pytorch import Averager, multi_tensor
from weightavg.pytorch.accumulators import build_accumulators
from weightavg.schemes import Ema, Lawa, Polynomial

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
  assert_same_by_name(whole, run())


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
    assert_same_by_name(weights(model), raw)
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


def test_compiled_and_wrapped_names_are_clean():
  model = Net()
  compiled = torch.compile(model, backend='eager')
  plain = averager_of(model, config('ema'), budget=10)
  wrapped = averager_of(compiled, config('ema'), budget=10)
  plain.update()
  wrapped.update()
  assert_same_by_name(
    plain.state_dict()['buffers'][0], wrapped.state_dict()['buffers'][0]
  )


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
    assert_same_by_name(a, b)


def test_a_caller_who_knows_can_say_so():
  p = nn.Parameter(torch.ones(1))
  averager = averager_of([('p', p)], config('ema'), budget=10)
  averager.update(finite=False)
  assert (averager.skipped, averager.samples) == (1, 0)


def test_budget_must_be_positive():
  with pytest.raises(ValueError, match='Invalid budget=0'):
    averager_of(Net(), config('ema'), budget=0)


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


def test_an_averager_takes_no_point_for_a_configuration():
  with pytest.raises(
    ValueError, match=r'Invalid config: a dict\. Must be an A'
  ):
    Averager.from_config(nn.Linear(1, 1), {'averaging_scheme': 'ema'}, 100)


def test_checkpoints_are_switched_by_a_bool():
  with pytest.raises(
    ValueError, match=r"Invalid checkpoints='no'\. Must be tr"
  ):
    Averager(nn.Linear(1, 1), Ema(0.5), placement='sharded', checkpoints='no')
