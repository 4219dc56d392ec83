"""States of NadamW: copies, files, hooks, distributed checkpoints."""

import copy
import io

import pytest
import torch
from nadamw_runs import SETTINGS, gradients, parameters
from torch.distributed.checkpoint.state_dict import (
  get_optimizer_state_dict,
  set_optimizer_state_dict,
)

from weightavg.pytorch import NadamW
from weightavg.pytorch.schedules import build_scheduler


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
