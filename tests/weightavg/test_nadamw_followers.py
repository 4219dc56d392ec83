"""Tensors that NadamW moves along with its parameters, by literal lines."""

import pytest
import torch
from torch import nn

from weightavg.pytorch import NadamW
from weightavg.pytorch.followers import Followers

BEFORE, AFTER = -0.5, 0.25
SHAPE = (8, 2, 4, 4)


def as_it_is(p):
  return p


def channels_last(p):
  return p.to(memory_format=torch.channels_last)


def with_gaps(p):
  return torch.stack([p, p], dim=1).flatten(0, 1)[::2]


def build(lay_out, **options):
  """Two parameters that lead, one that does not, one without a gradient."""
  generator = torch.Generator().manual_seed(0)
  params = [
    nn.Parameter(
      lay_out(torch.randn(SHAPE, generator=generator, dtype=torch.float64))
    )
    for _ in range(4)
  ]
  for p in params[:3]:
    p.grad = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    p.grad = torch.empty_like(p).copy_(p.grad)
  settings = {'lr': 0.1, 'betas': (0.9, 0.99), 'weight_decay': 0.1} | options
  return params, NadamW(params, **settings)


def follow(f, before, after, skips=False):
  middle = f + BEFORE * (before - f)
  return middle if skips else middle + AFTER * (after - middle)


@pytest.mark.parametrize('skip', [None, 0.0, 1.0])
@pytest.mark.parametrize('beta1', [0.0, 0.9])
@pytest.mark.parametrize('lay_out', [as_it_is, channels_last, with_gaps])
def test_followers_move_before_and_after_the_step(lay_out, beta1, skip):
  params, optimizer = build(lay_out, betas=(beta1, 0.99))
  twins, plain = build(lay_out, betas=(beta1, 0.99))
  leaders = [params[0], params[2], params[3]]
  tensors = {p: torch.full_like(p, 2.0).detach() for p in leaders}
  old = [p.detach().clone() for p in params]
  flag = None if skip is None else torch.tensor(skip)
  followers = Followers(tensors, BEFORE, AFTER, flag)
  optimizer.lead(followers)
  if skip:
    # On an accelerator, nothing knows yet that the step is left out.
    params[0].grad[1, 0, 2, 3] = float('nan')
    twins[0].grad = twins[2].grad = None
  optimizer.step()
  plain.step()
  # The second of two parameters of a batch may be stepped by another kernel.
  for p, q in zip(params, twins, strict=True):
    torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-13)
  assert followers.moved == {params[0], params[2]}
  for index in (0, 2):
    expected = follow(
      torch.full_like(old[index], 2.0), old[index], params[index], skip == 1.0
    )
    torch.testing.assert_close(
      tensors[params[index]], expected.detach(), rtol=1e-13, atol=1e-13
    )
  assert torch.equal(tensors[params[3]], torch.full(SHAPE, 2.0).double())
  if skip:
    for index in (0, 2):
      assert torch.equal(params[index], twins[index])
      state = optimizer.state[params[index]]
      assert not any(t.any() for k, t in state.items() if k != 'step')
  moments = {'exp_avg_sq'} | ({'exp_avg'} if beta1 else set())
  for p in params[:3]:
    assert optimizer.state[p].keys() == {'step'} | moments
  assert not optimizer.state[params[3]]


@pytest.mark.parametrize('beta1', [0.0, 0.9])
@pytest.mark.parametrize('lay_out', [as_it_is, channels_last, with_gaps])
def test_a_step_left_out_on_the_device_is_taken_out_of_the_counts(
  lay_out, beta1
):
  params, optimizer = build(lay_out, betas=(beta1, 0.99))
  twins, plain = build(lay_out, betas=(beta1, 0.99))
  tensors = {p: torch.zeros_like(p).detach() for p in params}
  zero, one = torch.zeros(()), torch.ones(())
  optimizer.lead(Followers(tensors, BEFORE, AFTER, zero))
  optimizer.step()
  good = [None if p.grad is None else p.grad.clone() for p in params]
  for p in params[:3]:
    p.grad.fill_(float('inf'))
  for _ in range(2):
    optimizer.lead(Followers(tensors, BEFORE, AFTER, one))
    optimizer.step()
    optimizer.uncount()
  for p, gradient in zip(params, good, strict=True):
    p.grad = gradient
  optimizer.lead(Followers(tensors, BEFORE, AFTER, zero))
  optimizer.step()
  for _ in range(2):
    plain.lead(
      Followers({p: torch.zeros_like(p) for p in twins}, BEFORE, AFTER, zero)
    )
    plain.step()
  for p, q in zip(params, twins, strict=True):
    assert torch.equal(p, q)
    one_state, other_state = optimizer.state[p], plain.state[q]
    assert one_state.keys() == other_state.keys()
    for key, value in one_state.items():
      assert torch.equal(
        torch.as_tensor(value), torch.as_tensor(other_state[key])
      )


def test_a_step_that_is_left_out_writes_nothing():
  params, optimizer = build(as_it_is)
  optimizer.step()
  before = [p.detach().clone() for p in params]
  params[0].grad.fill_(float('nan'))
  followers = Followers(
    {
      p: torch.zeros(SHAPE, dtype=torch.float64) for p in (params[0], params[2])
    },
    BEFORE,
    AFTER,
    True,
  )
  optimizer.lead(followers)
  optimizer.step()
  assert not followers.moved
  assert not any(f.any() for f in followers.tensors.values())
  assert [optimizer.state[p]['step'] for p in params[:3]] == [1, 2, 1]
  for index in (0, 2, 3):
    assert torch.equal(params[index], before[index])
  # This one is averaged by nobody.
  assert not torch.equal(params[1], before[1])


def test_followers_are_moved_in_one_step_only():
  params, optimizer = build(as_it_is)
  tensors = {params[0]: torch.zeros(SHAPE, dtype=torch.float64)}
  optimizer.lead(Followers(tensors, BEFORE, AFTER))
  optimizer.step()
  moved = tensors[params[0]].clone()
  assert moved.abs().sum() > 0
  optimizer.step()
  assert torch.equal(tensors[params[0]], moved)


def test_followers_keep_the_step_counts_of_their_parameters():
  """Parameters that missed a step have a t of their own, followed or not."""
  counts = {}
  for leads in (False, True):
    params, optimizer = build(as_it_is)
    gradient, params[1].grad, params[2].grad = params[1].grad, None, None
    optimizer.step()
    params[1].grad, params[2].grad = gradient, gradient.clone()
    if leads:
      tensors = {p: torch.zeros_like(p).detach() for p in params[:2]}
      optimizer.lead(Followers(tensors, BEFORE, AFTER))
    optimizer.step()
    assert [optimizer.state[p]['step'] for p in params[:3]] == [2, 1, 1]
    counts[leads] = [p.detach().clone() for p in params]
  for p, q in zip(counts[False], counts[True], strict=True):
    torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-13)


def test_a_step_that_was_not_made_is_not_taken_out_of_the_counts():
  """As with GradScaler, which leaves out the call of step()."""
  params, optimizer = build(as_it_is)
  for is_made in (True, False):
    tensors = {p: torch.zeros_like(p).detach() for p in params}
    optimizer.lead(Followers(tensors, BEFORE, AFTER, torch.tensor(0.0)))
    if is_made:
      optimizer.step()
  optimizer.uncount()
  assert optimizer.state[params[0]]['step'] == 1
