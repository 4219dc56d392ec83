"""Training at an average: steps that are not finite, or not made."""

import fakes
import pytest
import torch
from primal_runs import (
  backward,
  bad_step,
  batch,
  build,
  contents,
  everything,
  nadamw,
  network,
  sgd,
  spoil,
  train,
)
from tensors import assert_same_by_name
from torch import nn

from weightavg import (
  Ema,
  Polynomial,
)
from weightavg.pytorch import Averager, NadamW, finite, multi_tensor
from weightavg.pytorch.followers import Followers
from weightavg.pytorch.primal import PrimalPlacement
from weightavg.pytorch.weights import Weights


@pytest.mark.parametrize('batch_norm', ['averaged', 'current', 'refreshed'])
@pytest.mark.parametrize('beta1', [0.0, 0.3])
@pytest.mark.parametrize('bad_steps', [(0,), (3,), (3, 4)])
def test_a_step_that_is_not_finite_is_as_if_it_was_not_made(
  batch_norm, beta1, bad_steps
):
  runs = [
    build(
      mu=0.5,
      make=lambda params: nadamw(params, betas=(beta1, 0.9)),
      batch_norm=batch_norm,
      # Due after the same batches in both runs: never.
      **({'refresh_every': 100} if batch_norm == 'refreshed' else {}),
    )
    for _ in range(2)
  ]
  faulty, sound = runs
  for step in range(7):
    if step in bad_steps:
      bad_step(*faulty, step)
    else:
      for run in runs:
        train(*run, [step])
    found, expected = (everything(*run) for run in runs)
    assert fakes.differences(found, expected) == []
  assert faulty[2].skipped == len(bad_steps)
  assert sound[2].skipped == 0


def test_a_refresh_by_a_bad_batch_is_dropped():
  model, optimizer, averager = build(batch_norm='refreshed', refresh_every=2)
  train(model, optimizer, averager, range(3))
  with averager.evaluating():
    before = contents(model)
  with averager.refreshing():
    model(torch.full_like(batch(model, 0)[0], float('inf')))
  with averager.evaluating():
    assert_same_by_name(contents(model), before)
  with averager.refreshing():
    model(batch(model, 0)[0])
  with averager.evaluating():
    assert not torch.equal(model.norm.running_mean, before['norm.running_mean'])


class Later(finite.Looker):
  """Leaves the result on the device, as on an accelerator."""

  def look(self, tensors, dtensor_parameters=()):
    return finite.Look(multi_tensor.not_finite(tensors))


@pytest.mark.parametrize('beta1', [0.0, 0.3])
@pytest.mark.parametrize('bad_steps', [(0,), (3,), (3, 4)])
def test_a_step_left_out_on_the_device_is_taken_back_later(beta1, bad_steps):
  """Exact are z and the moments; y was x for a while, a rounding more."""
  runs = []
  for _ in range(2):
    model = network()
    weights = Weights(model, with_statistics=True)
    placement = PrimalPlacement(Ema(0.75), weights, 0.5, looker=Later())
    optimizer = nadamw(model.parameters(), betas=(beta1, 0.9))
    runs.append((model, optimizer, placement, weights))
  for step in range(7):
    looks = []
    for model, optimizer, placement, weights in runs:
      is_bad = step in bad_steps
      if is_bad and placement is runs[1][2]:
        continue
      backward(model, step)
      if is_bad:
        spoil(model)
      placement.begin([optimizer], is_sampled=True)
      optimizer.step()
      looks.append(placement.end(None, weights.statistics_now(False)))
    assert looks[0].must_skip() == (step in bad_steps)
    if looks[0].must_skip():
      runs[0][2].retract()
    faulty, sound = (
      {
        'count': placement.count,
        'weighting': placement.weighting(),
        'z': placement.buffers(),
        'y': contents(model),
        'optimizer': optimizer.state_dict(),
      }
      for model, optimizer, placement, _ in runs
    )
    if step < bad_steps[0]:
      assert fakes.differences(faulty, sound) == []
    if step == 0 in bad_steps:
      # Moments of zeros, and no step counted, or nothing yet.
      states = faulty['optimizer']['state'].values()
      assert not any(
        torch.as_tensor(t).any() for s in states for t in s.values()
      )
      continue
    # Roundings of float64.
    torch.testing.assert_close(faulty, sound, rtol=1e-11, atol=1e-13)


def test_a_state_that_was_loaded_since_is_not_uncounted():
  p = nn.Parameter(torch.ones(2))
  p.grad = torch.full_like(p, float('nan'))
  optimizer = nadamw([p])
  state = optimizer.state_dict()
  follower = {p: torch.ones(2)}
  optimizer.lead(Followers(follower, -0.5, 0.25, torch.ones(())))
  optimizer.step()
  assert optimizer.state[p]['step'] == 1
  optimizer.load_state_dict(optimizer.state_dict())
  optimizer.uncount()
  assert optimizer.state[p]['step'] == 1
  optimizer.load_state_dict(state)
  assert not optimizer.state[p]


def test_another_optimizers_step_that_is_not_finite_leaves_the_average():
  model, optimizer, averager = build(make=sgd)
  train(model, optimizer, averager, range(3))
  with averager.evaluating():
    average = contents(model)
  statistics = model.norm.running_mean.clone()
  bad_step(model, optimizer, averager, 3)
  assert (averager.samples, averager.skipped) == (3, 1)
  with averager.evaluating():
    for name, p in model.named_parameters():
      # x, recovered from y once more or once less.
      torch.testing.assert_close(p.data, average[name], rtol=1e-12, atol=1e-14)
  # Training continues from the average.
  for name, p in model.named_parameters():
    torch.testing.assert_close(p.data, average[name], rtol=1e-12, atol=1e-14)
  assert torch.equal(model.norm.running_mean, statistics)
  train(model, optimizer, averager, [4])
  assert averager.samples == 4


def test_a_finite_gradient_may_make_z_infinite():
  # 0 / 0 where the gradient is 0 and there is no eps: z is looked at.
  p = nn.Parameter(torch.tensor([1.0, 2.0]))
  optimizer = NadamW([p], lr=0.5, betas=(0.0, 0.9), eps=0.0)
  averager = Averager([('p', p)], Polynomial(0.0), interpolation=0.5)
  for gradient in (1.0, 0.0, 1.0):
    p.grad = torch.tensor([gradient, 1.0])
    averager.before_step(optimizer)
    optimizer.step()
    averager.update()
    assert torch.isfinite(p).all()
  assert (averager.samples, averager.skipped) == (3, 0)
  q = nn.Parameter(torch.tensor([1.0, 2.0]))
  optimizer = NadamW([q], lr=0.5, betas=(0.0, 0.9), eps=0.0)
  averager = Averager([('q', q)], Polynomial(0.0), interpolation=0.5)
  for gradient in (0.0, 1.0):
    q.grad = torch.tensor([gradient, 1.0])
    averager.before_step(optimizer)
    optimizer.step()
    averager.update()
    with averager.evaluating():
      assert torch.isfinite(q).all()
  assert (averager.samples, averager.skipped) == (1, 1)


def test_a_first_step_that_is_not_finite_is_no_sample():
  model, optimizer, averager = build(make=sgd)
  start = contents(model)
  backward(model, 0)
  model.out.bias.grad[0] = float('inf')
  averager.before_step(optimizer)
  optimizer.step()
  averager.update()
  assert (averager.samples, averager.skipped) == (0, 1)
  for name, p in model.named_parameters():
    assert torch.equal(p.data, start[name])


def test_a_sample_that_is_left_out_has_no_weight():
  runs = [build('schedule_free', sgd, mu=0.5) for _ in range(2)]
  for _, optimizer, _ in runs:
    optimizer.param_groups[0]['lr'] = 0.0
  faulty, sound = runs
  for step in range(4):
    for model, optimizer, averager in (faulty, sound):
      if step == 2 and model is sound[0]:
        continue
      backward(model, step)
      optimizer.param_groups[0]['lr'] = 3.0 if step == 2 else 0.5
      if step == 2:
        model.idle.grad = torch.full_like(model.idle, float('nan'))
      averager.before_step(optimizer)
      optimizer.step()
      averager.update()
  states = [averager.state_dict() for *_, averager in runs]
  assert states[0]['weighting'] == states[1]['weighting']
  assert states[0]['samples'] == states[1]['samples'] == 3


def test_a_skipped_step_of_the_optimizer_is_a_sample_of_the_same_z():
  # As GradScaler does where gradients overflow.
  model, optimizer, averager = build('polyak')
  train(model, optimizer, averager, range(2))
  z = [t.clone() for t in averager.placement._other]
  backward(model, 2)
  averager.before_step(optimizer)
  averager.update()
  assert averager.samples == 3
  for a, b in zip(z, averager.placement._other, strict=True):
    assert torch.equal(a, b)
  train(model, optimizer, averager, [3])
