"""Shampoo against closed forms, other methods and invariances."""

import math

import pytest
import torch

from weightavg.pytorch.shampoo import DistributedShampoo, blocking
from weightavg.pytorch.shampoo import root_schedule as schedule
from weightavg.pytorch.shampoo.reference import ReferenceShampoo


def parameter(*shape, dtype=torch.float64):
  return torch.nn.Parameter(torch.randn(shape, dtype=dtype))


def step_with(optimizer, weight, gradient):
  weight.grad = gradient.clone()
  optimizer.step()


def test_two_steps_of_a_scalar_by_hand():
  """In dimension 1, S = g |g|^-1 and hence P = a, the Adam direction."""
  weight = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
  optimizer = DistributedShampoo(
    [weight],
    lr=0.5,
    betas=(0.5, 0.75),
    weight_decay=0.1,
    precondition_frequency=1,
    grafting_epsilon=0.0,
    preconditioner_dtype=torch.float64,
  )
  step_with(optimizer, weight, torch.tensor([3.0], dtype=torch.float64))
  # m / (1 - 0.5) = 3, v / (1 - 0.75) = 9: P = 1 + 0.1 * 2.
  assert weight.item() == pytest.approx(2 - 0.5 * 1.2, rel=1e-12)
  step_with(optimizer, weight, torch.tensor([-1.0], dtype=torch.float64))
  # m = 0.5 * 1.5 - 0.5 = 0.25, v = 0.75 * 2.25 + 0.25 = 1.9375.
  adam = (0.25 / 0.75) / math.sqrt(1.9375 / 0.4375)
  expected = 1.4 - 0.5 * (adam + 0.1 * 1.4)
  assert weight.item() == pytest.approx(expected, rel=1e-12)


def test_blocks_of_dimension_one_are_adamw():
  weight = parameter(3, 2)
  twin = torch.nn.Parameter(weight.detach().clone())
  optimizer = DistributedShampoo(
    [weight],
    lr=0.1,
    betas=(0.9, 0.99),
    weight_decay=0.05,
    max_preconditioner_dim=1,
    precondition_frequency=2,
    preconditioner_dtype=torch.float64,
  )
  adamw = torch.optim.AdamW(
    [twin], lr=0.1, betas=(0.9, 0.99), weight_decay=0.05
  )
  for _ in range(8):
    gradient = torch.randn(3, 2, dtype=torch.float64)
    step_with(optimizer, weight, gradient)
    step_with(adamw, twin, gradient)
    # AdamW decays before its step: lr * weight_decay times the step apart, and
    # torch adds epsilon at another place only in rounding.
    torch.testing.assert_close(weight, twin, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('dim', [40, 41])
def test_table_without_factors_is_nadamw(dim):
  weight = parameter(dim, 2)
  reference = ReferenceShampoo(
    weight.detach(),
    lr=0.1,
    use_nadam=True,
    weight_decay=0.1,
    diagonal=True,
    max_preconditioner_dim=1_000,
    precondition_frequency=2,
  )
  optimizer = DistributedShampoo(
    [weight],
    lr=0.1,
    use_nadam=True,
    weight_decay=0.1,
    diagonal_dim_threshold=40,
    precondition_frequency=2,
    grafting='sgd',
  )
  for _ in range(5):
    gradient = torch.randn(dim, 2, dtype=torch.float64)
    reference.step(gradient)
    step_with(optimizer, weight, gradient)
  torch.testing.assert_close(
    weight.detach(), reference.weight, rtol=1e-12, atol=1e-12
  )
  # No factors: as much state as Adam's.
  assert optimizer.state_bytes() == 2 * weight.numel() * 8


@pytest.mark.parametrize('grafting', ['adam', 'sgd', 'adagrad', 'rmsprop'])
def test_identity_preconditioners_give_the_grafted_direction(grafting):
  """With an exponent near 0 all roots are I: P is f with the length of a."""
  weight = parameter(4, 3)
  before = weight.detach().clone()
  optimizer = DistributedShampoo(
    [weight],
    lr=1.0,
    betas=(0.0, 0.9),
    precondition_frequency=1,
    exponent_multiplier=1e-14,
    grafting=grafting,
    preconditioner_dtype=torch.float64,
  )
  gradient = torch.randn(4, 3, dtype=torch.float64)
  step_with(optimizer, weight, gradient)
  length = {
    'sgd': gradient.norm().item(),
    'rmsprop': math.sqrt(12 / 0.1),
  }.get(grafting, math.sqrt(12))
  expected = gradient / gradient.norm() * length
  torch.testing.assert_close(
    before - weight.detach(), expected, rtol=1e-6, atol=1e-6
  )


def test_orthogonal_change_of_coordinates_is_followed():
  """With SGD grafting, rotated gradients give rotated steps."""
  rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
  weight = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
  rotated = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
  both = [
    DistributedShampoo(
      [w],
      lr=0.1,
      epsilon=1e-3,
      precondition_frequency=2,
      max_preconditioner_dim=4,
      grafting='sgd',
      preconditioner_dtype=torch.float64,
    )
    for w in (weight, rotated)
  ]
  for _ in range(6):
    gradient = torch.randn(4, 3, dtype=torch.float64)
    step_with(both[0], weight, gradient)
    step_with(both[1], rotated, rotation @ gradient)
  torch.testing.assert_close(
    rotated.detach(), rotation @ weight.detach(), rtol=1e-9, atol=1e-9
  )


def test_zero_gradients_only_decay():
  weight = parameter(3, 2)
  before = weight.detach().clone()
  optimizer = DistributedShampoo(
    [weight], lr=0.1, weight_decay=0.5, precondition_frequency=2
  )
  for _ in range(4):
    step_with(optimizer, weight, torch.zeros(3, 2, dtype=torch.float64))
  torch.testing.assert_close(weight.detach(), before * 0.95**4)


def test_nothing_moves_before_the_first_root_without_grafting():
  weight = parameter(3, 2)
  before = weight.detach().clone()
  optimizer = DistributedShampoo(
    [weight], lr=0.1, grafting=None, precondition_frequency=3
  )
  for _ in range(2):
    step_with(optimizer, weight, torch.randn(3, 2, dtype=torch.float64))
  assert torch.equal(weight.detach(), before)


@pytest.mark.parametrize('grafting', ['adam', 'sgd', None])
def test_gradients_are_never_written(grafting):
  weight = parameter(5, 4)
  optimizer = DistributedShampoo(
    [weight],
    lr=0.1,
    betas=(0.0, 0.9),
    weight_decay=0.1,
    momentum=0.5,
    grafting=grafting,
    precondition_frequency=2,
  )
  for _ in range(3):
    gradient = torch.randn(5, 4, dtype=torch.float64)
    step_with(optimizer, weight, gradient)
    assert torch.equal(weight.grad, gradient)


def test_channels_last_weights_take_the_same_steps():
  weight = parameter(4, 6, 3, 3)
  last = torch.nn.Parameter(
    weight.detach().clone(memory_format=torch.preserve_format)
  )
  last.data = last.data.to(memory_format=torch.channels_last)
  for w in (weight, last):
    optimizer = DistributedShampoo(
      [w],
      lr=0.1,
      max_preconditioner_dim=10,
      precondition_frequency=2,
      preconditioner_dtype=torch.float64,
    )
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
      gradient = torch.randn(w.shape, generator=generator, dtype=torch.float64)
      if w is last:
        gradient = gradient.to(memory_format=torch.channels_last)
      step_with(optimizer, w, gradient)
  assert last.is_contiguous(memory_format=torch.channels_last)
  torch.testing.assert_close(last.detach(), weight.detach(), rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_follow_float32_up_to_rounding(dtype):
  weight = parameter(6, 5, dtype=dtype)
  twin = torch.nn.Parameter(weight.detach().float())
  options = {'lr': 0.01, 'precondition_frequency': 2, 'momentum': 0.5}
  options |= {'weight_decay': 0.1, 'max_preconditioner_dim': 6}
  narrow = DistributedShampoo([weight], **options)
  wide = DistributedShampoo([twin], **options)
  for _ in range(6):
    gradient = torch.randn(6, 5).to(dtype)
    step_with(narrow, weight, gradient)
    step_with(wide, twin, gradient.float())
  assert weight.dtype == dtype
  # Each of six steps rounds weights of up to 4 once.
  bound = 6 * 4 * torch.finfo(dtype).eps
  torch.testing.assert_close(
    weight.detach().float(), twin.detach(), rtol=0, atol=bound
  )


def test_works_with_a_learning_rate_schedule():
  weight = parameter(3)
  optimizer = DistributedShampoo([weight], lr=1.0)
  scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
  sizes = []
  for _ in range(3):
    before = weight.detach().clone()
    step_with(optimizer, weight, torch.ones(3, dtype=torch.float64))
    scheduler.step()
    sizes.append((before - weight.detach()).mean().item())
  assert sizes == pytest.approx([1.0, 0.5, 0.25], rel=1e-6)


def test_closure_is_called_with_gradients_enabled():
  weight = parameter(3)
  optimizer = DistributedShampoo([weight], lr=0.1)

  def closure():
    optimizer.zero_grad()
    loss = weight.square().sum()
    loss.backward()
    return loss.item()

  first = optimizer.step(closure)
  assert optimizer.step(closure) < first


@pytest.mark.parametrize(
  ('shape', 'limit', 'merged'),
  [
    ((5, 3, 3, 3), 16, (15, 9)),
    ((16, 8), 16, (16, 8)),
    ((1, 6, 1, 2), 12, (12,)),
    ((), 4, (1,)),
    ((1, 1), 4, (1,)),
    ((64, 3, 7, 7), 1024, (192, 49)),
  ],
)
def test_dims_merge_left_to_right(shape, limit, merged):
  assert blocking.merge_dims(shape, limit) == merged


def test_blocks_are_cut_row_by_row():
  blocks = blocking.cut_blocks((40, 24), 16, 0, 0, False)
  shapes = [(16, 16), (16, 8), (16, 16), (16, 8), (8, 16), (8, 8)]
  assert [block.shape for block in blocks] == shapes
  tensor = torch.arange(40 * 24).view(40, 24)
  assert torch.equal(blocks[3].cut(tensor), tensor[16:32, 16:24])


def test_spread_roots_are_balanced_and_each_block_is_due_once():
  group = {
    'precondition_frequency': 4,
    'start_preconditioning_step': -1,
    'spread_roots': True,
  }
  blocks = blocking.cut_blocks((50, 20), 10, 0, 0, False)
  phases = schedule.phases(blocks, [group])
  counts = []
  seen = set()
  for step in range(4, 8):
    due = schedule.due_blocks(group | {'step': step}, phases, 0)
    counts.append(len(due))
    assert not seen & due
    seen |= due
  assert seen == set(blocks)
  assert sorted(counts) == [2, 2, 3, 3]


def test_spread_blocks_match_reference_with_their_own_start():
  """A single block has phase 0 and takes its roots as if not spread."""
  results = []
  for spread in (False, True):
    torch.manual_seed(1)
    weight = parameter(3, 2)
    optimizer = DistributedShampoo(
      [weight], lr=0.1, precondition_frequency=3, spread_roots=spread
    )
    for _ in range(9):
      step_with(optimizer, weight, torch.randn(3, 2, dtype=torch.float64))
    results.append(weight.detach())
  assert torch.equal(*results)
