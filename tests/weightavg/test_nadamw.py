"""NadamW against literal steps and the slow reference."""

import copy
import io
import shutil

import pytest
import torch
from references import ReferenceNadamW

from weightavg.pytorch import NadamW, multi_tensor, nadamw

SETTINGS = {'lr': 0.01, 'betas': (0.9, 0.99), 'eps': 1e-8, 'weight_decay': 0.1}


def parameters(dtype, shapes=((3, 4), (5,), (), (2, 3, 4, 4))):
  generator = torch.Generator().manual_seed(1)
  return [
    torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype))
    for s in shapes
  ]


def gradients(params, step):
  generator = torch.Generator().manual_seed(100 + step)
  return [torch.randn(p.shape, generator=generator).to(p.dtype) for p in params]


def test_literal_first_two_steps():
  p = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
  optimizer = NadamW([p], lr=0.1, betas=(0.5, 0.75), eps=0.0, weight_decay=0.5)
  p.grad = torch.tensor([2.0], dtype=torch.float64)
  optimizer.step()
  # m = 1, n = 0.5 * 1 + 0.5 * 2 = 1.5, v = 0.25 * 4 = 1, corrections 0.5 and
  # 0.25: p = 1 * 0.95 - 0.1 / 0.5 * 1.5 / (1 / 0.5) = 0.95 - 0.15
  assert p.item() == pytest.approx(0.8, rel=1e-14)
  p.grad = torch.tensor([-1.0], dtype=torch.float64)
  optimizer.step()
  # m = 0, n = -0.5, v = 0.75 + 0.25 = 1, corrections 0.75 and 0.4375:
  # p = 0.8 * 0.95 + 0.1 / 0.75 * 0.5 / (1 / sqrt(0.4375))
  expected = 0.76 + 0.1 / 0.75 * 0.5 * 0.4375**0.5
  assert p.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
  ('dtype', 'tolerance'),
  [
    # 20 steps of about ten operations round by at most a few hundred ulp.
    (torch.float64, 1e-13),
    (torch.float32, 2e-5),
  ],
)
def test_equals_the_slow_reference_at_every_step(dtype, tolerance):
  params = parameters(dtype)
  reference = ReferenceNadamW(params, **SETTINGS)
  optimizer = NadamW(params, **SETTINGS)
  for step in range(20):
    grads = gradients(params, step)
    if step % 3 == 1:
      grads[1] = None
    for p, g in zip(params, grads, strict=True):
      p.grad = g
    optimizer.step()
    reference.step(grads)
    for i, p in enumerate(params):
      torch.testing.assert_close(
        p.double(), reference.p[i], rtol=tolerance, atol=tolerance
      )
      if optimizer.state[p]:
        for name, buffers in (('exp_avg', 'm'), ('exp_avg_sq', 'v')):
          torch.testing.assert_close(
            optimizer.state[p][name].double(),
            getattr(reference, buffers)[i],
            rtol=tolerance,
            atol=tolerance,
          )


def test_large_tensors_cut_into_pieces_equal_whole_ones(monkeypatch):
  def run():
    params = parameters(torch.float64, ((40, 50), (7,), (3, 2, 8, 8)))
    params[2].data = params[2].data.to(memory_format=torch.channels_last)
    optimizer = NadamW(params, **SETTINGS)
    for step in range(3):
      for p, g in zip(params, gradients(params, step), strict=True):
        p.grad = g
      optimizer.step()
    return params

  whole = run()
  monkeypatch.setattr(multi_tensor, 'PIECE', 64)
  for a, b in zip(whole, run(), strict=True):
    # Whole, the channels-last tensor takes another kernel than its pieces.
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_half_precision_keeps_float32_moments_and_rounds_once():
  params = parameters(torch.bfloat16)
  reference = ReferenceNadamW(params, **SETTINGS)
  optimizer = NadamW(params, **SETTINGS)
  grads = gradients(params, 0)
  for p, g in zip(params, grads, strict=True):
    p.grad = g
  optimizer.step()
  reference.step(grads)
  for p, expected in zip(params, reference.p, strict=True):
    assert optimizer.state[p]['exp_avg_sq'].dtype == torch.float32
    # One rounding to bfloat16: half an ulp, 2^-8 relative.
    torch.testing.assert_close(p.double(), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_continues_bit_for_bit(dtype):
  params = parameters(dtype)
  optimizer = NadamW(params, **SETTINGS)
  for step in range(3):
    for p, g in zip(params, gradients(params, step), strict=True):
      p.grad = g
    optimizer.step()
  file = io.BytesIO()
  torch.save(optimizer.state_dict(), file)
  file.seek(0)
  others = [torch.nn.Parameter(p.detach().clone()) for p in params]
  restored = NadamW(others, lr=1.0)
  restored.load_state_dict(torch.load(file, weights_only=True))
  for group, opt in ((params, optimizer), (others, restored)):
    for p, g in zip(group, gradients(group, 3), strict=True):
      p.grad = g
    opt.step()
  for p, q in zip(params, others, strict=True):
    assert torch.equal(p, q)
    assert restored.state[q]['exp_avg'].dtype == torch.float32


def test_copies_and_loaded_states_are_independent():
  params = parameters(torch.float32)
  optimizer = NadamW(params, **SETTINGS)
  for p, g in zip(params, gradients(params, 0), strict=True):
    p.grad = g
  optimizer.step()
  other = NadamW(parameters(torch.float32), **SETTINGS)
  other.load_state_dict(optimizer.state_dict())
  before = other.state[other.param_groups[0]['params'][0]]['exp_avg'].clone()
  duplicate = copy.deepcopy(optimizer)
  for p, g in zip(
    duplicate.param_groups[0]['params'], gradients(params, 1), strict=True
  ):
    p.grad = g
  duplicate.step()
  optimizer.step()
  after = other.state[other.param_groups[0]['params'][0]]['exp_avg']
  assert torch.equal(after, before)


def test_parameters_without_gradient_are_left_alone():
  p, q = parameters(torch.float32, ((3,), (3,)))
  before = copy.deepcopy(q.data)
  optimizer = NadamW([p, q], **SETTINGS)
  p.grad = torch.ones(3)
  optimizer.step()
  assert torch.equal(q, before)
  assert not optimizer.state[q]


def test_learning_rate_zero_changes_nothing():
  params = parameters(torch.float32)
  before = [p.detach().clone() for p in params]
  optimizer = NadamW(params, **SETTINGS | {'lr': 0.0})
  for p, g in zip(params, gradients(params, 0), strict=True):
    p.grad = g
  optimizer.step()
  for p, b in zip(params, before, strict=True):
    assert torch.equal(p, b)


def test_closure_is_evaluated_with_gradients():
  p = torch.nn.Parameter(torch.tensor([2.0]))
  optimizer = NadamW([p], lr=0.1)

  def closure():
    loss = (p**2).sum()
    p.grad = None
    loss.backward()
    return loss

  assert optimizer.step(closure).item() == 4.0
  assert p.item() < 2.0


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'lr': -1.0}, r'Invalid lr=-1.0. Must be in \[0, inf\)'),
    ({'lr': float('nan')}, 'Invalid lr=nan'),
    ({'betas': (1.0, 0.9)}, r'Invalid betas\[0\]=1.0. Must be in \[0, 1\)'),
    ({'betas': (0.9, -0.1)}, r'Invalid betas\[1\]=-0.1'),
    ({'betas': (0.9,)}, r'Invalid betas=\(0.9,\). Must be two numbers'),
    ({'eps': -1e-8}, 'Invalid eps=-1e-08'),
    ({'weight_decay': float('inf')}, 'Invalid weight_decay=inf'),
  ],
)
def test_arguments_out_of_range_are_refused(kwargs, message):
  with pytest.raises(ValueError, match=message):
    NadamW(parameters(torch.float32), **kwargs)


def test_complex_and_sparse_are_refused():
  with pytest.raises(ValueError, match='complex'):
    NadamW([torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
  p = torch.nn.Parameter(torch.zeros(3))
  p.grad = torch.eye(3)[0].to_sparse()
  with pytest.raises(RuntimeError, match='sparse'):
    NadamW([p]).step()


def test_without_a_compiler_it_warns_once_and_makes_the_same_step(monkeypatch):
  def no_compiler(*args):
    raise RuntimeError('no C++ compiler')

  monkeypatch.setattr(nadamw, '_compiled_update', lambda: no_compiler)
  params, others = parameters(torch.float32), parameters(torch.float32)
  compiled = NadamW(params, **SETTINGS, fused='compile')
  plain = NadamW(others, **SETTINGS)
  for step in range(2):
    for group, optimizer in ((params, compiled), (others, plain)):
      for p, g in zip(group, gradients(group, step), strict=True):
        p.grad = g
      if optimizer is compiled and step == 0:
        with pytest.warns(UserWarning, match='runs uncompiled: RuntimeError'):
          optimizer.step()
      else:
        optimizer.step()
  for p, q in zip(params, others, strict=True):
    assert torch.equal(p, q)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_what_is_compiled_is_the_same_arithmetic(dtype, monkeypatch):
  monkeypatch.setattr(
    nadamw, '_compiled_update', lambda: torch.no_grad()(nadamw._plain_update)
  )
  params, others = parameters(dtype), parameters(dtype)
  compiled = NadamW(params, **SETTINGS, fused='compile')
  plain = NadamW(others, **SETTINGS)
  for step in range(5):
    for group, optimizer in ((params, compiled), (others, plain)):
      for p, g in zip(group, gradients(group, step), strict=True):
        p.grad = g
      optimizer.step()
  # Another order of the same operations; bfloat16 may round the other way.
  tolerance = 1e-13 if dtype == torch.float64 else 2**-7
  for p, q in zip(params, others, strict=True):
    torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_compiled_kernel_makes_the_same_steps():
  if shutil.which('g++') is None:
    pytest.skip('no C++ compiler')
  params, others = parameters(torch.float32), parameters(torch.float32)
  compiled = NadamW(params, **SETTINGS, fused='compile')
  plain = NadamW(others, **SETTINGS)
  for step in range(3):
    for group, optimizer in ((params, compiled), (others, plain)):
      for p, g in zip(group, gradients(group, step), strict=True):
        p.grad = g
      optimizer.step()
  assert compiled._compiled
  for p, q in zip(params, others, strict=True):
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
