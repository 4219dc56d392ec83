"""The compiled kernel of NadamW makes the steps of the plain one."""

import copy
import pickle
import shutil

import pytest
import torch
from nadamw_runs import SETTINGS, gradients, parameters

from weightavg.pytorch import NadamW

# torch's compiler warns of torch's own deprecated functions when imported.
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')


def pickled(optimizer):
  return pickle.loads(pickle.dumps(optimizer))


def step_both(compiled, plain, first, last):
  """Steps first..last of both optimizers with the same gradients."""
  for step in range(first, last + 1):
    for optimizer in (compiled, plain):
      params = optimizer.param_groups[0]['params']
      for p, g in zip(params, gradients(params, step), strict=True):
        p.grad = g
      optimizer.step()


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


@pytest.mark.parametrize('copied', [copy.deepcopy, pickled])
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


@pytest.mark.slow
def test_the_compiled_kernel_makes_the_same_steps():
  if shutil.which('g++') is None:
    pytest.skip('no C++ compiler')
  params, others = parameters(torch.float32), parameters(torch.float32)
  pair = NadamW(params, **SETTINGS, fused='compile'), NadamW(others, **SETTINGS)
  # A step that cannot compile would warn, which is an error here.
  step_both(*pair, 0, 2)
  for p, q in zip(params, others, strict=True):
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


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
