"""The averager beside what else a training loop may use: docs/compatibility.md.

Each test trains a small model with the feature, and compares the average with
the explicit weighted sum of the weights after each optimizer step.
"""

import copy
import pickle
import shutil

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from weightavg import Ema, Lawa
from weightavg.pytorch import Averager, NadamW

STEPS = 5


class Checkpointed(nn.Module):
  def __init__(self, layers):
    super().__init__()
    self.layers = layers

  def forward(self, x):
    return checkpoint(self.layers, x, use_reentrant=False)


def make():
  return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def inputs(number, rows=6):
  generator = torch.Generator().manual_seed(number)
  return torch.randn(rows, 3, generator=generator)


def flat(model):
  return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


def assert_average(model, averager, scheme, samples):
  weights = scheme.weights(len(samples))
  expected = sum(w * s.double() for w, s in zip(weights, samples, strict=True))
  with averager.evaluating():
    # float32 averages of a few samples.
    torch.testing.assert_close(
      flat(model).double(), expected, rtol=1e-5, atol=1e-6
    )
  assert torch.equal(flat(model), samples[-1])


# torch.compile imports modules of torch that use deprecated ones.
@pytest.mark.filterwarnings('ignore:`torch.jit:DeprecationWarning')
@pytest.mark.parametrize('scheme', [Ema(0.5), Lawa(window=3)])
@pytest.mark.parametrize('swap', ['copy', 'exchange'])
@pytest.mark.parametrize(
  'wrap',
  [
    nn.DataParallel,
    Checkpointed,
    lambda model: torch.compile(model, backend='aot_eager'),
    lambda model: nn.Sequential(model),
  ],
  ids=['DataParallel', 'activation checkpointing', 'compile', 'submodule'],
)
def test_wrapped_models(wrap, swap, scheme):
  model = make()
  wrapped = wrap(model)
  optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.1)
  averager = Averager(wrapped, scheme, every=1, swap=swap)
  samples = []
  for number in range(STEPS):
    wrapped(inputs(number)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    averager.update()
    samples.append(flat(model))
  assert_average(model, averager, scheme, samples)
  with averager.evaluating():
    assert torch.equal(wrapped(inputs(9)), model(inputs(9)))


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:`torch.jit:DeprecationWarning')
def test_a_model_that_inductor_compiled_sees_the_swap():
  """torch.compile's default backend, which needs a C++ compiler."""
  if shutil.which('g++') is None:
    pytest.skip('no C++ compiler')
  for swap in ('copy', 'exchange'):
    model = make()
    compiled = torch.compile(model)
    averager = Averager(compiled, Ema(0.5), swap=swap)
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=0.1)
    samples = []
    for number in range(STEPS):
      compiled(inputs(number)).square().mean().backward()
      optimizer.step()
      optimizer.zero_grad()
      averager.update()
      samples.append(flat(model))
    assert_average(model, averager, Ema(0.5), samples)
    with torch.no_grad():
      before = compiled(inputs(9))
      with averager.evaluating():
        # float32 products in another order than uncompiled.
        torch.testing.assert_close(
          compiled(inputs(9)), model(inputs(9)), rtol=1e-5, atol=1e-6
        )
        assert not torch.equal(compiled(inputs(9)), before)
      assert torch.equal(compiled(inputs(9)), before)


@pytest.mark.parametrize('optimizer_class', [torch.optim.AdamW, NadamW])
def test_gradient_accumulation_counts_optimizer_steps(optimizer_class):
  model = make()
  optimizer = optimizer_class(model.parameters(), lr=0.1)
  averager = Averager(model, Ema(0.5))
  samples = []
  for number in range(3 * STEPS):
    model(inputs(number)).square().mean().backward()
    if number % 3 == 2:
      optimizer.step()
      optimizer.zero_grad()
      averager.update()
      samples.append(flat(model))
  assert averager.step == STEPS
  assert_average(model, averager, Ema(0.5), samples)


def test_autocast_and_a_grad_scaler_that_skips_a_step():
  model = make()
  optimizer = NadamW(model.parameters(), lr=0.1)
  scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
  averager = Averager(model, Ema(0.5))
  samples = []
  for number in range(STEPS):
    with torch.autocast('cpu', dtype=torch.bfloat16):
      loss = model(inputs(number)).float().square().mean()
    scaler.scale(loss * (float('inf') if number == 2 else 1.0)).backward()
    before = flat(model)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    averager.update()
    samples.append(flat(model))
    assert torch.equal(before, samples[-1]) == (number == 2)
  assert_average(model, averager, Ema(0.5), samples)
  with torch.autocast('cpu', dtype=torch.bfloat16), torch.no_grad():
    raw = model(inputs(9))
    with averager.evaluating():
      shown = model(inputs(9))
    assert torch.equal(model(inputs(9)), raw)
  assert not torch.equal(raw, shown)


@pytest.mark.parametrize(
  'clone',
  [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
  ids=['deepcopy', 'pickle'],
)
def test_a_copy_of_model_and_averager_is_independent(clone):
  model = make()
  averager = Averager(model, Ema(0.5))
  for number in range(STEPS):
    model[0].weight.data.fill_(float(number))
    averager.update()
  other_model, other = clone((model, averager))
  with averager.evaluating():
    expected = flat(model)
  other_model[0].weight.data.fill_(100.0)
  other.update()
  assert (averager.samples, other.samples) == (STEPS, STEPS + 1)
  with averager.evaluating():
    assert torch.equal(flat(model), expected)
  with other.evaluating():
    assert not torch.equal(flat(other_model), expected)


# Not beside NadamW's other tests: mutmut's trampolines are frames of their own.
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_warning_of_a_missing_compiler_names_the_line_of_the_step():
  p = nn.Parameter(torch.zeros(3))
  optimizer = NadamW([p], fused='compile')
  p.grad = torch.ones(3)
  with (
    torch.compiler.set_stance('fail_on_recompile'),
    pytest.warns(UserWarning, match='runs uncompiled') as caught,
  ):
    optimizer.step()
  # torch's compiler may warn of torch's own deprecated functions.
  names = [w.filename for w in caught if 'uncompiled' in str(w.message)]
  assert names == [__file__]
