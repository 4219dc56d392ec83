"""NadamW against literal steps and the slow reference."""

import copy

import pytest
import torch
from nadamw_runs import SETTINGS, gradients, parameters
from references import ReferenceNadamW

from weightavg.pytorch import NadamW


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


def _channels_last(p):
  return p.to(memory_format=torch.channels_last)


def _every_other_row(p):
  return torch.stack([p, p], dim=1).flatten(0, 1)[::2]


@pytest.mark.parametrize('lay_out', [_channels_last, _every_other_row])
@pytest.mark.parametrize('is_grad_alike', [True, False])
def test_strides_change_nothing(lay_out, is_grad_alike):
  params = parameters(torch.float64, ((8, 2, 4, 4), (7,)))
  others = parameters(torch.float64, ((8, 2, 4, 4), (7,)))
  others[0].data = lay_out(others[0].data)
  pair = NadamW(params, **SETTINGS), NadamW(others, **SETTINGS)
  for step in range(3):
    for group, optimizer in zip((params, others), pair, strict=True):
      for p, g in zip(group, gradients(params, step), strict=True):
        alike = torch.empty_like(p).copy_(g)
        p.grad = alike if is_grad_alike else g
      optimizer.step()
  assert not others[0].is_contiguous()
  # Where strides differ, the same operations run in another order.
  for a, b in zip(params, others, strict=True):
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_dense_memory_in_any_order_is_stepped_by_the_same_kernel():
  """Bit for bit: the fused kernel takes memory as it comes."""
  (p,) = parameters(torch.float32, ((8, 2, 4, 4),))
  (q,) = parameters(torch.float32, ((8, 2, 4, 4),))
  q.data = _channels_last(q.data)
  pair = NadamW([p], **SETTINGS), NadamW([q], **SETTINGS)
  for step in range(3):
    for other, optimizer in zip((p, q), pair, strict=True):
      other.grad = torch.empty_like(other).copy_(gradients([p], step)[0])
      optimizer.step()
  assert torch.equal(p, q)


def test_a_tensor_larger_than_a_piece_equals_its_rows():
  """600,000 elements are cut into five pieces, each row fits in one."""
  whole = parameters(torch.float32, ((6, 100_000),))
  rows = [torch.nn.Parameter(row.clone()) for row in whole[0].detach()]
  pair = NadamW(whole, **SETTINGS), NadamW(rows, **SETTINGS)
  for step in range(2):
    (grad,) = gradients(whole, step)
    whole[0].grad = grad
    for row, g in zip(rows, grad, strict=True):
      row.grad = g.clone()
    for optimizer in pair:
      optimizer.step()
  assert torch.equal(whole[0].detach(), torch.stack(rows).detach())


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


def test_hyperparameters_that_are_not_given_are_those_of_adam():
  params = parameters(torch.float32)
  optimizer, adam = NadamW(params), torch.optim.Adam(params)
  for name, value in optimizer.defaults.items():
    assert value == adam.defaults[name], name


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
    ({'fused': 'x'}, r"^Invalid fused='x'\. Must be None or compile\.$"),
  ],
)
def test_arguments_out_of_range_are_refused(kwargs, message):
  with pytest.raises(ValueError, match=message):
    NadamW(parameters(torch.float32), **kwargs)


def test_complex_and_sparse_are_refused():
  message = r'^Invalid params\. NadamW takes no complex tensors\.$'
  with pytest.raises(ValueError, match=message):
    NadamW([torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
  p = torch.nn.Parameter(torch.zeros(3))
  p.grad = torch.eye(3)[0].to_sparse()
  message = r'^Invalid gradient\. NadamW takes no sparse tensors\.$'
  with pytest.raises(RuntimeError, match=message):
    NadamW([p]).step()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'lr': -1}, 'Invalid lr=-1'),
    ({'betas': (0.9, 1.0)}, r'Invalid betas\[1\]=1.0'),
  ],
)
def test_hyperparameters_of_a_group_are_checked(options, message):
  p, q = parameters(torch.float32, ((2,), (2,)))
  with pytest.raises(ValueError, match=message):
    NadamW([{'params': [p]} | options])
  optimizer = NadamW([p])
  with pytest.raises(ValueError, match=message):
    optimizer.add_param_group({'params': [q]} | options)
  assert len(optimizer.param_groups) == 1


def test_gradient_scaling_by_powers_of_two_changes_nothing():
  params, others = parameters(torch.float32), parameters(torch.float32)
  optimizer, scaled = (NadamW(p, **SETTINGS) for p in (params, others))
  scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10, growth_interval=1)
  for step in range(4):
    grads = gradients(params, step)
    for group, opt in ((params, optimizer), (others, scaled)):
      opt.zero_grad()
      loss = sum((p * g).sum() for p, g in zip(group, grads, strict=True))
      if opt is scaled:
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
      else:
        loss.backward()
        opt.step()
  assert scaler.get_scale() == 2.0**14
  for p, q in zip(params, others, strict=True):
    assert torch.equal(p, q)


def test_gradient_scaling_skips_a_step_that_overflows():
  params = parameters(torch.float32)
  before = [p.detach().clone() for p in params]
  optimizer = NadamW(params, **SETTINGS)
  scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10)
  loss = sum(p.sum() for p in params) * float('inf')
  scaler.scale(loss).backward()
  scaler.step(optimizer)
  scaler.update()
  assert scaler.get_scale() == 2.0**9
  assert not optimizer.state
  for p, q in zip(params, before, strict=True):
    assert torch.equal(p, q)


@pytest.mark.cuda
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_steps_on_a_gpu_equal_the_slow_reference(dtype):
  if not torch.cuda.is_available():
    pytest.skip('no CUDA device')
  params = [
    torch.nn.Parameter(p.detach().cuda())
    for p in parameters(dtype, ((3, 4), (5,), (), (2, 3, 4, 4)))
  ]
  params[3].data = params[3].data.to(memory_format=torch.channels_last)
  reference = ReferenceNadamW([p.cpu() for p in params], **SETTINGS)
  optimizer = NadamW(params, **SETTINGS)
  for step in range(5):
    grads = gradients(params, step)
    for p, g in zip(params, grads, strict=True):
      p.grad = torch.empty_like(p).copy_(g)
    optimizer.step()
    reference.step(grads)
  # Five steps with about ten roundings each; bfloat16 rounds once per step.
  tolerance = 2e-5 if dtype == torch.float32 else 5 * 2**-8
  for p, expected in zip(params, reference.p, strict=True):
    torch.testing.assert_close(
      p.detach().cpu().double(), expected, rtol=tolerance, atol=tolerance
    )


def test_a_sparse_gradient_is_refused_before_anything_is_stepped():
  dense, sparse = (
    torch.nn.Parameter(torch.ones(2)),
    torch.nn.Parameter(torch.ones(2, 1)),
  )
  optimizer = NadamW([dense, sparse])
  dense.grad = torch.ones(2)
  sparse.grad = torch.ones(2, 1).to_sparse()
  with pytest.raises(RuntimeError, match='NadamW takes no sparse tensors'):
    optimizer.step()
  assert not optimizer.state
  assert torch.equal(dense.detach(), torch.ones(2))
