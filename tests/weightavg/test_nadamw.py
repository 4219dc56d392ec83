"""NadamW against literal steps and the slow reference."""

import copy
import io
import pickle
import shutil

import pytest
import torch
from references import ReferenceNadamW
from torch.distributed.checkpoint.state_dict import (
  get_optimizer_state_dict,
  set_optimizer_state_dict,
)

from weightavg.pytorch import NadamW
from weightavg.pytorch.schedules import build_scheduler

# torch's compiler warns of torch's own deprecated functions when imported.
imports_compiler = pytest.mark.filterwarnings('ignore::DeprecationWarning')
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
  restored = NadamW(others, lr=SETTINGS['lr'])
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


def test_moments_are_loaded_to_the_device_of_their_parameter():
  params = parameters(torch.float32)
  optimizer = NadamW(params, **SETTINGS)
  for p, g in zip(params, gradients(params, 0), strict=True):
    p.grad = g
  optimizer.step()
  elsewhere = [torch.nn.Parameter(p.detach().to('meta')) for p in params]
  other = NadamW(elsewhere, **SETTINGS)
  other.load_state_dict(optimizer.state_dict())
  for p in elsewhere:
    assert other.state[p]['exp_avg'].is_meta
    assert other.state[p]['exp_avg_sq'].is_meta


def step_both(compiled, plain, first, last):
  """Steps first..last of both optimizers with the same gradients."""
  for step in range(first, last + 1):
    for optimizer in (compiled, plain):
      params = optimizer.param_groups[0]['params']
      for p, g in zip(params, gradients(params, step), strict=True):
        p.grad = g
      optimizer.step()


@imports_compiler
def test_without_a_compiler_it_warns_once_and_makes_the_same_step():
  params, others = parameters(torch.float32), parameters(torch.float32)
  pair = NadamW(params, **SETTINGS, fused='compile'), NadamW(others, **SETTINGS)
  with (
    torch.compiler.set_stance('fail_on_recompile'),
    pytest.warns(UserWarning, match='runs uncompiled: RuntimeError'),
  ):
    step_both(*pair, 0, 0)
  step_both(*pair, 1, 1)
  for p, q in zip(params, others, strict=True):
    assert torch.equal(p, q)


@imports_compiler
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_what_is_compiled_is_the_same_arithmetic(dtype):
  params, others = parameters(dtype), parameters(dtype)
  pair = NadamW(params, **SETTINGS, fused='compile'), NadamW(others, **SETTINGS)
  with torch.compiler.set_stance('force_eager'):
    step_both(*pair, 0, 4)
  # Another order of the same operations; bfloat16 may round the other way.
  tolerance = 1e-13 if dtype == torch.float64 else 2**-7
  for p, q in zip(params, others, strict=True):
    torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@imports_compiler
def test_parameters_of_all_dtypes_are_stepped_by_the_compiled_kernel():
  pair = []
  for fused in ('compile', None):
    params = [
      p for d in (torch.float32, torch.float64) for p in parameters(d, ((4,),))
    ]
    optimizer = NadamW(params, **SETTINGS, fused=fused)
    for p, g in zip(params, gradients(params, 0), strict=True):
      p.grad = g
    with torch.compiler.set_stance('force_eager'):
      optimizer.step()
    pair.append(params)
  for p, q in zip(*pair, strict=True):
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@imports_compiler
@pytest.mark.parametrize('copied', [copy.deepcopy, lambda o: pickled(o)])
def test_copies_and_pickles_stay_compiled(copied):
  optimizer = copied(NadamW(parameters(torch.float32), fused='compile'))
  (group,) = optimizer.param_groups
  for p, g in zip(group['params'], gradients(group['params'], 0), strict=True):
    p.grad = g
  # The stance lets only an optimizer that wants to compile fail.
  with (
    torch.compiler.set_stance('fail_on_recompile'),
    pytest.warns(UserWarning, match='runs uncompiled'),
  ):
    optimizer.step()


def pickled(optimizer):
  return pickle.loads(pickle.dumps(optimizer))


@pytest.mark.slow
@imports_compiler
def test_the_compiled_kernel_makes_the_same_steps():
  if shutil.which('g++') is None:
    pytest.skip('no C++ compiler')
  params, others = parameters(torch.float32), parameters(torch.float32)
  pair = NadamW(params, **SETTINGS, fused='compile'), NadamW(others, **SETTINGS)
  # A step that cannot compile would warn, which is an error here.
  step_both(*pair, 0, 2)
  for p, q in zip(params, others, strict=True):
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@imports_compiler
@pytest.mark.parametrize('fused', [None, 'compile'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_bias_correction_ignores_the_default_dtype(dtype, fused):
  """Issue 15, fault 7: t = 2049 is neither a bfloat16 nor a float16."""
  results = []
  for default in (torch.float32, dtype):
    (p,) = params = parameters(torch.float32, ((3, 4),))
    optimizer = NadamW(
      params, **SETTINGS | {'betas': (0.9, 0.9999)}, fused=fused
    )
    p.grad = gradients(params, 0)[0]
    with torch.compiler.set_stance('force_eager'):
      optimizer.step()
      optimizer.state[p]['step'] = 2048
      torch.set_default_dtype(default)
      try:
        optimizer.step()
      finally:
        torch.set_default_dtype(torch.float32)
    results.append(p.detach())
  assert torch.equal(*results)


@imports_compiler
@pytest.mark.parametrize('fused', [None, 'compile'])
def test_steps_ignore_the_default_device(fused):
  """Issue 15, fault 7: under torch.device('meta') a step changed nothing."""
  params, others = parameters(torch.float32), parameters(torch.float32)
  optimizer, twin = (
    NadamW(p, **SETTINGS, fused=fused) for p in (params, others)
  )
  for p, q, g in zip(params, others, gradients(params, 0), strict=True):
    p.grad, q.grad = g, g.clone()
  with torch.compiler.set_stance('force_eager'):
    twin.step()
    with torch.device('meta'):
      optimizer.step()
  for p, q in zip(params, others, strict=True):
    assert torch.equal(p, q)


def test_a_hook_that_reorders_the_state_by_name_is_kept():
  """Issue 15, fault 3: moments were read by position after torch's hooks."""

  def build(names):
    named = [(name, torch.nn.Parameter(torch.zeros(1))) for name in names]
    return dict(named), NadamW(named, **SETTINGS)

  def by_name(optimizer, state_dict):
    (saved,) = state_dict['param_groups']
    numbers = dict(zip(saved['param_names'], saved['params'], strict=True))
    names = optimizer.param_groups[0]['param_names']
    group = saved | {
      'params': [numbers[n] for n in names],
      'param_names': names,
    }
    return {'state': state_dict['state'], 'param_groups': [group]}

  first, optimizer = build(['a', 'b'])
  first['a'].grad, first['b'].grad = torch.tensor([1.0]), torch.tensor([-1.0])
  optimizer.step()
  second, other = build(['b', 'a'])
  other.register_load_state_dict_pre_hook(by_name)
  other.load_state_dict(optimizer.state_dict())
  for name in ('a', 'b'):
    assert torch.equal(
      other.state[second[name]]['exp_avg'],
      optimizer.state[first[name]]['exp_avg'],
    )


def test_a_hook_after_loading_sees_and_may_change_the_moments():
  params = parameters(torch.bfloat16)
  optimizer = NadamW(params, **SETTINGS)
  for p, g in zip(params, gradients(params, 0), strict=True):
    p.grad = g
  optimizer.step()
  other = NadamW(params, **SETTINGS)

  def forget(optimizer):
    for state in optimizer.state.values():
      assert state['exp_avg'].dtype == torch.float32
      state['exp_avg'].zero_()

  other.register_load_state_dict_post_hook(forget)
  other.load_state_dict(optimizer.state_dict())
  assert all(s['exp_avg'].eq(0).all() for s in other.state.values())


def test_a_state_loads_through_distributed_checkpoint():
  """Issue 15, fault 3: this raised TypeError."""
  optimizers, models = [], []
  for _ in range(2):
    torch.manual_seed(0)
    models.append(torch.nn.Linear(3, 2))
    optimizers.append(NadamW(models[-1].parameters(), **SETTINGS))
  models[0](torch.ones(1, 3)).sum().backward()
  optimizers[0].step()
  state = get_optimizer_state_dict(models[0], optimizers[0])
  set_optimizer_state_dict(models[1], optimizers[1], state)
  for p, q in zip(*(m.parameters() for m in models), strict=True):
    first, second = optimizers[0].state[p], optimizers[1].state[q]
    assert first['step'] == second['step'] == 1
    assert torch.equal(first['exp_avg'], second['exp_avg'])
    assert torch.equal(first['exp_avg_sq'], second['exp_avg_sq'])


def test_another_peak_learning_rate_is_loaded_with_a_warning():
  params = parameters(torch.float32)
  saved = NadamW(params, lr=0.1).state_dict()
  optimizer = NadamW(params, lr=0.5)
  message = r"saved learning rates \[0\.1\], not the constructor's \[0\.5\]"
  with pytest.warns(UserWarning, match=message):
    optimizer.load_state_dict(saved)
  assert optimizer.param_groups[0]['lr'] == 0.1


def test_a_learning_rate_that_a_scheduler_set_loads_without_a_warning():
  optimizer = NadamW(parameters(torch.float32), lr=0.1)
  build_scheduler(optimizer, 10, warmup_factor=0.5)
  restored = NadamW(parameters(torch.float32), lr=0.1)
  restored.load_state_dict(optimizer.state_dict())
  assert restored.param_groups[0]['lr'] == pytest.approx(1e-11)


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


def test_moments_of_a_narrower_model_are_widened():
  """Moments decide in which dtype a step is computed."""
  narrow = torch.nn.Parameter(torch.ones(3))
  source = torch.optim.AdamW([narrow], foreach=False)
  narrow.grad = torch.ones(3)
  source.step()
  p = torch.nn.Parameter(torch.full((3,), 1.0 + 1e-12, dtype=torch.float64))
  optimizer = NadamW([p])
  optimizer.load_state_dict(source.state_dict())
  state = optimizer.state[p]
  assert state['exp_avg'].dtype == state['exp_avg_sq'].dtype == torch.float64
  assert state['step'] == 1
  assert type(state['step']) is int
  optimizer.param_groups[0]['lr'] = 0.0
  p.grad = torch.ones_like(p)
  optimizer.step()
  assert torch.equal(p.detach(), torch.full_like(p, 1.0 + 1e-12))


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
