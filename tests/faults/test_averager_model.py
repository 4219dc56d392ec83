"""The averager under random sequences of calls, against a float64 model.

The model is a list of all weights that were sampled, in float64, and the
scheme's explicit weights of them. After any sequence of steps, swaps, saves,
loads into other placements, replaced parameters and lost processes the averager
shows what the model says.
"""

import copy
import io

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import (
  RuleBasedStateMachine,
  initialize,
  invariant,
  precondition,
  rule,
  run_state_machine_as_test,
)
from torch import nn

from weightavg import Ema, Lawa, Polynomial
from weightavg.pytorch import Averager

SCHEMES = (
  Ema(decay=0.5),
  Ema(decay=0.9),
  Lawa(window=1),
  Lawa(window=3),
  Polynomial(power=0.0),
  Polynomial(power=4.0),
)
# float32 sums of at most 60 samples of magnitude 4.
TOLERANCE = 60 * 4 * 2.0**-23


class Model(nn.Module):
  """Parameters of several kinds: tied, frozen, empty, without dimensions."""

  def __init__(self) -> None:
    super().__init__()
    self.first = nn.Parameter(torch.zeros(3, 2))
    self.norm = nn.BatchNorm1d(2)
    self.scalar = nn.Parameter(torch.zeros(()))
    self.empty = nn.Parameter(torch.zeros(0, 5))
    self.low = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    self.tied = nn.Linear(2, 2, bias=False)
    self.other = nn.Linear(2, 2, bias=False)
    self.other.weight = self.tied.weight


class AveragerMachine(RuleBasedStateMachine):
  """A model whose weights are written to, and its averager."""

  @initialize(
    scheme=st.sampled_from(SCHEMES),
    every=st.integers(1, 3),
    start=st.integers(0, 3),
    placement=st.sampled_from(('device', 'cpu')),
    swap=st.sampled_from(('copy', 'exchange')),
  )
  def build(self, scheme, every, start, placement, swap):
    self.scheme, self.every, self.start = scheme, every, start
    self.model = Model()
    self.averager = self.new(self.model, placement, swap)
    self.step, self.skipped, self.draw = 0, 0, 0
    self.samples = []
    self.raw = self.weights()
    self.shown = False
    self.saved = None

  def new(self, model, placement, swap):
    return Averager(
      model,
      self.scheme,
      every=self.every,
      start=self.start,
      placement=placement,
      swap=swap,
    )

  def weights(self):
    """Copies of the averaged tensors, by name."""
    return {
      name: tensor.detach().clone()
      for name, tensor in self.averager.named_weights().items()
    }

  def expected(self):
    """The average of the samples in float64, or the raw weights."""
    if not self.samples:
      return self.raw
    weights = self.scheme.weights(len(self.samples))
    used = self.samples[len(self.samples) - len(weights) :]
    return {
      name: sum(
        w * sample[name].double()
        for w, sample in zip(weights, used, strict=True)
      )
      for name in self.raw
    }

  @precondition(lambda self: not self.shown)
  @rule(fault=st.sampled_from((None,) * 6 + ('nan', 'inf', '-inf')))
  def train(self, fault):
    """An optimizer step, sometimes one that ends in a NaN."""
    self.draw += 1
    generator = np.random.default_rng(self.draw)
    for tensor in self.averager.named_weights().values():
      values = generator.uniform(-4, 4, tuple(tensor.shape))
      tensor.data.copy_(torch.as_tensor(values))
    if fault:
      self.model.first.data[1, 1] = float(fault)
    self.step += 1
    sampled = self.step >= max(1, self.start) and (
      self.averager.sampling.is_sampled(self.step)
    )
    self.averager.update()
    self.raw = self.weights()
    if sampled and fault:
      self.skipped += 1
    elif sampled:
      self.samples.append(self.raw)

  @rule()
  def show(self):
    self.averager.swap_in()
    self.shown = bool(self.samples)

  @rule()
  def hide(self):
    self.averager.swap_out()
    self.shown = False

  @rule()
  def save(self):
    """As a checkpoint does: the model as it is, and the averager."""
    buffer = io.BytesIO()
    content = {
      'model': self.model.state_dict(),
      'averager': self.averager.state_dict(),
    }
    torch.save(content, buffer)
    # What the model of the test knows then.
    known = (self.step, self.skipped, list(self.samples), self.raw, self.shown)
    self.saved = buffer.getvalue(), known

  @precondition(lambda self: self.saved is not None)
  @rule(
    placement=st.sampled_from(('device', 'cpu')),
    swap=st.sampled_from(('copy', 'exchange')),
    fresh=st.booleans(),
  )
  def load(self, placement, swap, fresh):
    """Into this averager, or after a kill into another process's."""
    content, known = self.saved
    loaded = torch.load(io.BytesIO(content), weights_only=True)
    if fresh:
      self.model = Model()
      self.averager = self.new(self.model, placement, swap)
    else:
      # A model that shows an average refuses load_state_dict.
      self.averager.swap_out()
    self.model.load_state_dict(loaded['model'])
    self.averager.load_state_dict(loaded['averager'])
    self.step, self.skipped, samples, self.raw, self.shown = known
    self.samples = list(samples)

  @precondition(lambda self: not self.shown)
  @rule()
  def replace_a_parameter(self):
    """By another of the same shape, as some libraries do."""
    self.model.scalar = nn.Parameter(self.model.scalar.detach().clone())

  @precondition(lambda self: not self.shown)
  @rule()
  def cast_a_parameter(self):
    """Raises, and changes nothing, for a parameter of another dtype."""
    before = self.model.first
    self.model.first = nn.Parameter(before.detach().half())
    if self.samples:
      with pytest.raises(RuntimeError):
        self.averager.swap_in()
    self.model.first = before

  @rule()
  def export(self):
    """The average as a state dict, whether it is shown or not."""
    state = self.averager.averaged_state_dict()
    expected = self.expected()
    assert torch.equal(state['frozen'], torch.ones(2))
    assert torch.equal(state['tied.weight'], state['other.weight'])
    for name, value in expected.items():
      close(state[name], value)

  @invariant()
  def agrees(self):
    if not hasattr(self, 'averager'):
      return
    averager = self.averager
    assert averager.step == self.step
    assert averager.samples == len(self.samples)
    assert averager.skipped == self.skipped
    assert averager.swapped == self.shown
    now = self.weights()
    expected = self.expected() if self.shown else self.raw
    for name, value in expected.items():
      if self.shown:
        close(now[name], value)
      else:
        # Bit for bit, NaNs too.
        assert equal_bits(now[name], value), name

  def teardown(self):
    if hasattr(self, 'averager'):
      before = copy.deepcopy(self.raw)
      self.averager.swap_out()
      for name, value in self.weights().items():
        assert equal_bits(value, before[name]), name


def equal_bits(a, b):
  """Compare two tensors bit for bit."""
  view = {2: torch.int16, 4: torch.int32}[a.element_size()]
  return a.dtype == b.dtype and torch.equal(
    a.contiguous().view(view), b.contiguous().view(view)
  )


def close(found, expected):
  # bfloat16 has 8 bits.
  tolerance = 4 * 2.0**-8 if found.dtype == torch.bfloat16 else TOLERANCE
  # Before the first sample these are the raw weights, which may hold a NaN.
  torch.testing.assert_close(
    found.double(), expected.double(), rtol=0, atol=tolerance, equal_nan=True
  )


@pytest.mark.parametrize(
  ('examples', 'steps'),
  [
    pytest.param(20, 25, id='short'),
    pytest.param(1500, 60, id='long', marks=pytest.mark.faults),
  ],
)
def test_any_sequence_of_calls(examples, steps, tally):
  settings = hypothesis.settings(
    max_examples=examples,
    stateful_step_count=steps,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  run_state_machine_as_test(AveragerMachine, settings=settings)
  tally.add('sequences', 'averager', examples)
