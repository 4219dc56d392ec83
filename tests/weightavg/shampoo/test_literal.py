"""Literal steps of blocks, without which mutants of the arithmetic survived."""

import pickle

import pytest
import torch

from weightavg.pytorch.shampoo import (
  DistributedShampoo,
  blocking,
  root_schedule,
)
from weightavg.pytorch.shampoo.block_state import make_stacks
from weightavg.pytorch.shampoo.inverse_roots import half_roots
from weightavg.pytorch.shampoo.step import step_group
from weightavg.pytorch.shampoo.symmetric_pairs import (
  factor_half,
  new_pair,
  root_half,
)


def roots(optimizer, number):
  """Return copies of the roots of a parameter's only block, by mode."""
  (block,) = optimizer.state_dict()['parameters'][f'0.{number}']['blocks']
  return [
    root_half(pair[None]).unpack()[0]
    for key, pair in block.items()
    if key.startswith('pair')
  ]


def step_with_random_gradients(optimizer, weights):
  for weight in weights:
    weight.grad = torch.randn_like(weight)
  optimizer.step()


def test_updates_are_sent_in_the_place_of_being_made():
  """P = G + weight_decay W before the first root, with SGD for grafting."""
  weight = torch.full((2,), 2.0, dtype=torch.float64)
  gradient = torch.tensor([3.0, -1.0], dtype=torch.float64)
  options = {'betas': (0.0, 1.0), 'grafting': 'sgd', 'weight_decay': 0.1}
  optimizer = DistributedShampoo(
    [torch.nn.Parameter(weight)], lr=0.5, **options
  )
  group = optimizer.param_groups[0] | {'step': 1}
  (block,) = blocking.cut_blocks((2,), 2, 0, 0, False)
  (stacks,) = make_stacks([block], [weight], [group], torch.float64, None)
  sent = {block: torch.zeros(2, dtype=torch.float64)}
  step_group(
    group,
    0,
    stacks,
    set(),
    set(),
    ['w'],
    {block: gradient},
    {block: weight},
    sent,
  )
  assert weight.tolist() == [2.0, 2.0]
  # -0.5 (3 + 0.2), -0.5 (-1 + 0.2).
  assert sent[block].tolist() == pytest.approx([-1.6, 0.4])


def test_an_override_of_one_is_the_inverse_itself():
  """S = g (g^2)^-1 = 1 / g in dimension 1."""
  weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
  optimizer = DistributedShampoo(
    [weight],
    lr=1.0,
    betas=(0.0, 1.0),
    epsilon=1e-12,
    grafting=None,
    inv_root_override=1,
    precondition_frequency=1,
    preconditioner_dtype=torch.float64,
  )
  weight.grad = torch.tensor([4.0], dtype=torch.float64)
  optimizer.step()
  assert weight.item() == pytest.approx(-0.25)


def test_a_bad_factor_keeps_its_own_last_root():
  weights = [torch.nn.Parameter(torch.zeros(3)) for _ in range(3)]
  optimizer = DistributedShampoo(weights, lr=0.1, precondition_frequency=1)
  step_with_random_gradients(optimizer, weights)
  before = [roots(optimizer, number) for number in range(3)]
  # The state's tensors are the live ones.
  blocks = optimizer.state_dict()['parameters']['0.1']['blocks']
  blocks[0]['pair_0'][1, 0] = torch.nan
  step_with_random_gradients(optimizer, weights)
  for number in range(3):
    ((old,), (new,)) = before[number], roots(optimizer, number)
    assert torch.equal(old, new) == (number == 1)


def test_fallbacks_of_all_stacks_are_counted(monkeypatch):
  def fail(matrices):
    raise torch.linalg.LinAlgError('made to fail')

  monkeypatch.setattr(torch.linalg, 'eigh', fail)
  weights = [torch.nn.Parameter(torch.zeros(size)) for size in (4, 3, 2)]
  optimizer = DistributedShampoo(weights, lr=0.1, precondition_frequency=1)
  step_with_random_gradients(optimizer, weights)
  assert (optimizer.retried_roots, optimizer.kept_roots) == (3, 3)


@pytest.mark.parametrize('value', [-1.0, torch.inf, torch.nan])
def test_a_bad_number_has_no_root(value):
  """A power of infinity is finite, a power of a negative number is not."""
  numbers = torch.tensor([4.0, value]).view(2, 1, 1)
  halves, good, retried = half_roots(numbers, 1.0, 1e-12)
  assert (good, retried) == ([True, False], [])
  assert halves[0].item() == pytest.approx(0.5)


def test_each_matrix_is_decomposed_again_by_itself(monkeypatch):
  """The first fails in float32 alone, the second in both dtypes."""
  eigh = torch.linalg.eigh

  def fail(matrices):
    if matrices.dtype == torch.float32 or (matrices[:, 0, 0] == 7.0).any():
      raise torch.linalg.LinAlgError('made to fail')
    return eigh(matrices)

  monkeypatch.setattr(torch.linalg, 'eigh', fail)
  matrices = torch.stack([4.0 * torch.eye(2), 7.0 * torch.eye(2)])
  halves, good, retried = half_roots(matrices, 1.0, 1e-12)
  assert (good, retried) == ([True, False], [0, 1])
  torch.testing.assert_close(halves[0] @ halves[0].mT, 0.25 * torch.eye(2))


def test_a_negative_spectrum_shifts_its_own_matrix_alone():
  matrices = torch.diag_embed(
    torch.tensor([[-1.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
  )
  halves, good, _ = half_roots(matrices, 1.0, 0.25)
  expected = torch.diag_embed(
    torch.tensor([[4.0, 1 / 2.25], [0.8, 1 / 4.25]], dtype=torch.float64)
  )
  assert good == [True, True]
  torch.testing.assert_close(halves @ halves.mT, expected)


@pytest.mark.parametrize('dim', [3, 130])
def test_a_part_of_a_product_is_added(dim):
  """130 rows are two triangles, a square, a panel and a smaller tile."""
  pair = new_pair(1, dim, torch.float64, torch.device('cpu'))
  rows = torch.randn(1, dim, 4, dtype=torch.float64)
  factor = factor_half(pair)
  for _ in range(2):
    factor.add_gram(rows, keep=1.0, add=0.25)
  torch.testing.assert_close(factor.unpack(), 0.5 * rows @ rows.mT)
  assert torch.equal(root_half(pair).unpack()[0], torch.eye(dim).double())


@pytest.mark.parametrize(
  ('options', 'names'),
  [
    ({'momentum': 0.5}, ['momentum', 'second_moment', 'velocity']),
    ({'betas': (0.0, 0.9)}, ['second_moment']),
    ({'betas': (0.0, 0.9), 'grafting': 'sgd'}, []),
  ],
  # Lists, as the order of a set differs from process to process.
  ids=str,
)
def test_the_state_of_a_block_is_what_its_options_need(options, names):
  weight = torch.nn.Parameter(torch.zeros(3, 2))
  optimizer = DistributedShampoo(
    [weight], lr=0.1, max_preconditioner_dim=3, **options
  )
  (block,) = optimizer.state_dict()['parameters']['0.0']['blocks']
  assert set(block) == {*names, 'pair_0', 'pair_1'}


def blocks_of(*shapes, diagonal=False):
  return [
    blocking.Block(0, number, 0, (0,) * len(shape), shape, diagonal)
    for number, shape in enumerate(shapes)
  ]


SPREAD = {
  'precondition_frequency': 2,
  'start_preconditioning_step': -1,
  'spread_roots': True,
}


def test_phases_balance_the_cubes_of_the_dims():
  """Loads 64, 0; 64, 27; 64, 54; 64, 81; 91, 81."""
  phases = root_schedule.phases(
    blocks_of((4,), (3,), (3,), (3,), (3,)), [SPREAD]
  )
  assert list(phases.values()) == [0, 1, 1, 1, 0]


def test_blocks_without_factors_have_no_load():
  diagonal = blocks_of((100,), (9,), diagonal=True)
  full = blocks_of((), (), (4, 4), (3, 3))[2:]
  phases = root_schedule.phases([*diagonal, *full], [SPREAD])
  assert [phases[block] for block in full] == [0, 1]
  assert [phases[block] for block in diagonal] == [1, 1]
  alone = root_schedule.phases(diagonal, [SPREAD])
  assert list(alone.values()) == [0, 0]


def test_a_phase_counts_from_the_first_root():
  group = SPREAD | {
    'precondition_frequency': 3,
    'start_preconditioning_step': 4,
  }
  (block,) = blocks_of((2,))
  steps = [
    step
    for step in range(1, 13)
    if root_schedule.due_blocks(group | {'step': step}, {block: 1}, 0)
  ]
  assert steps == [5, 8, 11]


def test_a_pickled_copy_takes_the_same_steps():
  weight = torch.nn.Parameter(torch.randn(3, 2))
  optimizer = DistributedShampoo(
    [weight], lr=0.1, max_preconditioner_dim=3, precondition_frequency=1
  )
  step_with_random_gradients(optimizer, [weight])
  both = [(weight, optimizer), pickle.loads(pickle.dumps((weight, optimizer)))]
  for seed in range(2):
    for parameter, owner in both:
      torch.manual_seed(seed)
      step_with_random_gradients(owner, [parameter])
  assert torch.equal(both[0][0], both[1][0])
