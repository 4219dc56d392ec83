"""Whole steps of Shampoo against the slow reference, in float64."""

import pytest
import torch

from weightavg.pytorch.shampoo import DistributedShampoo
from weightavg.pytorch.shampoo import step as shampoo_step
from weightavg.pytorch.shampoo.reference import ReferenceShampoo

# Rounding of ten steps in float64, where epsilon = 1e-4 bounds what an error in
# the spectrum of a rank-deficient factor can do to its root.
TOLERANCE = 1e-12

COMMON = {
  'lr': 0.1,
  'betas': (0.9, 0.95),
  'epsilon': 1e-4,
  'weight_decay': 0.01,
  'max_preconditioner_dim': 5,
  'precondition_frequency': 3,
}

# Orders 1 to 4, with and without merging, with blocks that do not divide.
SHAPES = [(), (1,), (7,), (5, 5), (7, 12), (1, 6, 1), (4, 6, 7), (2, 2, 3, 9)]
SHAPES += [(6, 4, 7, 3)]


def run(shapes, steps=10, missing=(), **options):
  """Step both; yield the pairs of weights after each step.

  Args:
    missing: (step, index of the parameter) pairs without a gradient.
  """
  options = COMMON | options
  weights = [
    torch.nn.Parameter(torch.randn(shape, dtype=torch.float64))
    for shape in shapes
  ]
  references = [ReferenceShampoo(w.detach(), **options) for w in weights]
  optimizer = DistributedShampoo(
    weights, preconditioner_dtype=torch.float64, **options
  )
  for step in range(1, steps + 1):
    for index, (weight, reference) in enumerate(
      zip(weights, references, strict=True)
    ):
      gradient = torch.randn(weight.shape, dtype=torch.float64)
      gradient = None if (step, index) in missing else gradient
      weight.grad = gradient
      reference.step(gradient)
    optimizer.step()
    for weight, reference in zip(weights, references, strict=True):
      yield step, weight.detach(), reference.weight


def check_steps(optimizer, weights, references):
  """Ten steps of one optimizer move each weight as its own reference does."""
  for _ in range(10):
    for weight, reference in zip(weights, references, strict=True):
      weight.grad = torch.randn_like(weight)
      reference.step(weight.grad)
    optimizer.step()
    for weight, reference in zip(weights, references, strict=True):
      torch.testing.assert_close(
        weight.detach(), reference.weight, rtol=TOLERANCE, atol=TOLERANCE
      )


def check(*args, tolerance=TOLERANCE, **kwargs):
  for step, weight, expected in run(*args, **kwargs):
    torch.testing.assert_close(
      weight,
      expected,
      rtol=tolerance,
      atol=tolerance,
      msg=lambda text, at=step: f'step {at}: {text}',
    )


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_matches_reference_for_every_order(shape):
  check([shape], use_nadam=True)


@pytest.mark.parametrize(
  'grafting', ['adam', 'sgd', 'adagrad', 'rmsprop', None]
)
def test_matches_reference_for_every_grafting(grafting):
  # Without grafting the roots decide how long steps are, and errors with them.
  tolerance = TOLERANCE if grafting else 1e-10
  check(
    [(7, 12), (7,)],
    grafting=grafting,
    grafting_beta2=0.8,
    tolerance=tolerance,
  )


@pytest.mark.parametrize(
  'options',
  [
    {'betas': (0.0, 0.95)},
    {'betas': (0.0, 1.0)},
    {'betas': (0.9, 1.0), 'grafting': 'rmsprop'},
    {'momentum': 0.9},
    {'momentum': 0.9, 'use_nesterov': True},
    {'momentum': 0.9, 'betas': (0.0, 0.9), 'grafting': 'sgd'},
    {'use_decoupled_weight_decay': False},
    {'inv_root_override': 2},
    {'inv_root_override': [0, 3, 5]},
    {'exponent_multiplier': 1.7},
    {'start_preconditioning_step': 5},
    {'use_nadam': True, 'grafting_epsilon': 1e-2},
  ],
  ids=str,
)
def test_matches_reference_for_every_option(options):
  check([(7, 12), (7,), (4, 6, 7)], **options)


def test_matches_reference_without_some_gradients():
  missing = {(1, 1), (3, 0), (4, 1), (6, 2), (7, 0), (7, 1), (7, 2)}
  check([(7, 12), (7, 12), (7,)], missing=missing, momentum=0.5)


def test_spread_roots_match_reference_with_a_phase_each():
  weights = [
    torch.nn.Parameter(torch.randn(4, d, dtype=torch.float64))
    for d in (5, 4, 3, 2)
  ]
  optimizer = DistributedShampoo(
    weights,
    spread_roots=True,
    preconditioner_dtype=torch.float64,
    **COMMON,
  )
  # Three phases; the largest block first, the smallest beside the third.
  references = [
    ReferenceShampoo(w.detach(), phase=phase, **COMMON)
    for w, phase in zip(weights, (0, 1, 2, 2), strict=True)
  ]
  check_steps(optimizer, weights, references)


def test_blocks_of_one_stack_take_roots_in_their_own_phases():
  options = {'lr': 0.1, 'precondition_frequency': 3, 'epsilon': 1e-4}
  weights = [
    torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64)) for _ in range(3)
  ]
  optimizer = DistributedShampoo(
    weights, spread_roots=True, preconditioner_dtype=torch.float64, **options
  )
  references = [
    ReferenceShampoo(w.detach(), phase=phase, **options)
    for phase, w in enumerate(weights)
  ]
  check_steps(optimizer, weights, references)


def test_matches_reference_beyond_one_tile():
  """Dims of 300 are two tiles of 128 and a smaller one."""
  check(
    [(300, 9), (300,)],
    steps=7,
    max_preconditioner_dim=300,
    # Factors of 300 that have seen up to 63 columns: epsilon = 1e-4 alone
    # scales the other directions, of which rounding has the size 1e-13.
    tolerance=1e-9,
  )


def test_factors_decomposed_in_several_batches_match_reference(monkeypatch):
  """Twelve factors of 5 x 6 elements, two at a time."""
  monkeypatch.setattr(shampoo_step, '_EIGH_ELEMENTS', 70)
  check([(20, 15)])


def test_competition_defaults_match_reference():
  check(
    [(20, 9), (33,)],
    betas=(0.933, 0.9955),
    epsilon=1e-8,
    max_preconditioner_dim=1024,
    use_nadam=True,
    use_nesterov=True,
    steps=6,
    # Vectors of 180 and 33 that have seen few gradients: all other directions
    # are scaled by epsilon alone, of which a rounding of 1e-16 is 1e-8.
    tolerance=1e-6,
  )
