"""Both optimizers under random sequences of calls, against slow references.

Random parameter trees, gradients that are missing, learning rates that change,
states that are saved and loaded into another process's optimizer.
"""

import copy
import io
import warnings

import hypothesis
import pytest
import references
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

from weightavg.pytorch.nadamw import NadamW
from weightavg.pytorch.shampoo import DistributedShampoo
from weightavg.pytorch.shampoo.reference import ReferenceShampoo

# Rounding of float64 over 40 steps.
TOLERANCE = 1e-12
EPS = torch.finfo(torch.float64).eps
SHAPES = st.lists(
  st.sampled_from(((), (1,), (4,), (3, 2), (1, 3, 1), (2, 3, 2), (6, 1, 5))),
  min_size=1,
  max_size=4,
)


class OptimizerMachine(RuleBasedStateMachine):
  """An optimizer and its reference, which get the same gradients."""

  @initialize(shapes=SHAPES, seed=st.integers(0, 2**20), data=st.data())
  def begin(self, shapes, seed, data):
    self.generator = torch.Generator().manual_seed(seed)
    self.shapes = shapes
    self.build(data)
    self.optimizer = self.new()
    self.saved = None

  def normal(self, shape):
    return torch.randn(shape, generator=self.generator, dtype=torch.float64)

  @rule(
    missing=st.sets(st.integers(0, 3), max_size=2),
    scale=st.sampled_from((0.0, 1e-6, 1.0, 1e3)),
  )
  def step(self, missing, scale):
    gradients = [
      None if i in missing else scale * self.normal(shape)
      for i, shape in enumerate(self.shapes)
    ]
    for weight, gradient in zip(self.weights, gradients, strict=True):
      weight.grad = gradient
    before = [None if g is None else g.clone() for g in gradients]
    self.optimizer.step()
    self.step_reference(gradients)
    # No optimizer writes to a gradient.
    for weight, gradient in zip(self.weights, before, strict=True):
      assert gradient is None or torch.equal(weight.grad, gradient)

  @rule()
  def save(self):
    """As a checkpoint does."""
    buffer = io.BytesIO()
    weights = [w.detach() for w in self.weights]
    torch.save([weights, self.optimizer.state_dict()], buffer)
    self.saved = buffer.getvalue(), copy.deepcopy(self.reference())

  @precondition(lambda self: self.saved is not None)
  @rule(fresh=st.booleans())
  def load(self, fresh):
    """Into this optimizer, or after a kill into another process's."""
    content, reference = self.saved
    weights, state = torch.load(io.BytesIO(content), weights_only=True)
    if fresh:
      self.weights = [torch.nn.Parameter(w.clone()) for w in weights]
      self.optimizer = self.new()
    for own, weight in zip(self.weights, weights, strict=True):
      own.data.copy_(weight)
    with warnings.catch_warnings():
      # Of a rate that differs from the constructor's, which is meant here.
      warnings.filterwarnings('ignore', '.* continues with the saved')
      self.optimizer.load_state_dict(state)
    self.set_reference(copy.deepcopy(reference))

  @invariant()
  def agrees(self):
    if not hasattr(self, 'optimizer'):
      return
    for weight, (expected, error) in zip(
      self.weights, self.expected(), strict=True
    ):
      torch.testing.assert_close(
        weight.detach(), expected, rtol=0.0, atol=error
      )


class NadamWMachine(OptimizerMachine):
  """NadamW, whose learning rate changes as well."""

  def build(self, data):
    self.options = {
      'lr': data.draw(st.sampled_from((0.0, 1e-3, 0.1))),
      'betas': (
        data.draw(st.sampled_from((0.0, 0.5, 0.9))),
        data.draw(st.sampled_from((0.0, 0.9, 0.999))),
      ),
      'eps': 1e-8,
      'weight_decay': data.draw(st.sampled_from((0.0, 0.1))),
    }
    self.weights = [torch.nn.Parameter(self.normal(s)) for s in self.shapes]
    self.slow = references.ReferenceNadamW(self.weights, **self.options)

  def new(self):
    options = self.options | {'lr': self.slow.lr}
    return NadamW(self.weights, **options)

  @rule(lr=st.sampled_from((0.0, 0.01, 0.05)))
  def change_the_learning_rate(self, lr):
    self.optimizer.param_groups[0]['lr'] = self.slow.lr = lr

  def step_reference(self, gradients):
    self.slow.step(gradients)

  def reference(self):
    return self.slow

  def set_reference(self, reference):
    self.slow = reference

  def expected(self):
    return [(p, TOLERANCE * (1.0 + _largest(p))) for p in self.slow.p]


def _largest(tensor):
  return tensor.abs().max().item()


class BoundedShampoo(ReferenceShampoo):
  """A reference that bounds how far another summation order may be from it.

  eigh finds the spectrum of a matrix close to A: their distance is eps |A|. In
  (A + epsilon I)^-q that is a relative error of eps |A| / epsilon where A has
  no spectrum, and so in S where a small gradient follows large ones: with
  |g| = 1e3 and epsilon = 1e-4 it is 1e-5, for any implementation. Measured, the
  optimizer and the reference differ by up to 1/50 of the sum below, and both
  differ as much from roots of 60 digits. P has the length of the grafted step,
  so the error of a step is relative to that: with 'sgd' it is lr |g|.
  """

  longest = 0.0  # lr |P| of a step, at most
  error = 0.0

  def step(self, gradient):
    before = self.weight
    super().step(gradient)
    mu, beta2 = self.options['momentum'], self.options['betas'][1]
    # |P| <= (|h| + mu |h of before|) / (1 - mu).
    move = (self.weight - before).norm().item() * (1 + mu) / (1 - mu)
    self.longest = max(self.longest, move)
    correction = 1.0 if beta2 == 1.0 else 1.0 - beta2**self.t
    # No eigenvalue is larger than the trace.
    traces = [f.trace().item() for state in self.blocks for f in state['A']]
    condition = 1.0 + max(traces) / correction / self.options['epsilon']
    self.error += EPS * condition * self.longest

  def bound(self):
    """Largest difference of an element."""
    scale = 1.0 + _largest(self.weight) + self.longest
    return TOLERANCE * scale + self.error


class ShampooMachine(OptimizerMachine):
  """Shampoo with roots every few steps."""

  def build(self, data):
    self.options = {
      'lr': 0.1,
      'betas': (
        data.draw(st.sampled_from((0.0, 0.9))),
        data.draw(st.sampled_from((0.95, 1.0))),
      ),
      'epsilon': 1e-4,
      'momentum': data.draw(st.sampled_from((0.0, 0.9))),
      'weight_decay': data.draw(st.sampled_from((0.0, 0.01))),
      'max_preconditioner_dim': data.draw(st.sampled_from((2, 4, 100))),
      'precondition_frequency': data.draw(st.sampled_from((1, 3))),
      'grafting': data.draw(st.sampled_from(('adam', 'sgd', 'rmsprop'))),
      'use_nadam': data.draw(st.booleans()),
    }
    self.weights = [torch.nn.Parameter(self.normal(s)) for s in self.shapes]
    self.slow = [
      BoundedShampoo(w.detach(), **self.options) for w in self.weights
    ]

  def new(self):
    return DistributedShampoo(
      self.weights, preconditioner_dtype=torch.float64, **self.options
    )

  def step_reference(self, gradients):
    for slow, gradient in zip(self.slow, gradients, strict=True):
      slow.step(gradient)

  def reference(self):
    return self.slow

  def set_reference(self, reference):
    self.slow = reference

  def expected(self):
    return [(slow.weight, slow.bound()) for slow in self.slow]


@pytest.mark.parametrize('machine', [NadamWMachine, ShampooMachine])
@pytest.mark.parametrize(
  ('examples', 'steps'),
  [
    pytest.param(15, 15, id='short'),
    pytest.param(600, 40, id='long', marks=pytest.mark.faults),
  ],
)
def test_any_sequence_of_calls(machine, examples, steps, tally):
  settings = hypothesis.settings(
    max_examples=examples,
    stateful_step_count=steps,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  run_state_machine_as_test(machine, settings=settings)
  tally.add('sequences', machine.__name__, examples)
