"""While an average is shown, nothing writes to it or takes it for raw."""

import copy
import gc
import pickle
import re

import pytest
import torch
from swap_models import SWAPS, model
from torch import nn
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from weightavg import Auto, Ema, Polynomial
from weightavg.pytorch import Averager, NadamW, shown
from weightavg.schemes import Raw


@pytest.mark.parametrize('swap', SWAPS)
def test_autocast_sees_the_swap(swap):
  net, averager = model(swap=swap)
  x = torch.ones(1, 1)
  with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
    assert net(x).item() == 5.0
    with averager.evaluating():
      assert net(x).item() == 3.0
    assert net(x).item() == 5.0


@pytest.mark.parametrize('swap', SWAPS)
def test_autocast_sees_each_candidate_in_one_block(swap):
  net = nn.Linear(1, 1, bias=False)
  averager = Averager(net, Auto([Polynomial(0.0), Ema(0.0)]), swap=swap)
  for value in (1.0, 5.0, 9.0):
    net.weight.data.fill_(value)
    averager.update()
  net.weight.data.fill_(2.0)
  seen = []
  with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
    for which in (-1, 0, 1, 0):
      with averager.evaluating(which):
        seen.append(net(torch.ones(1, 1)).item())
  assert seen == [2.0, 5.0, 9.0, 5.0]


@pytest.mark.parametrize('swap', SWAPS)
@pytest.mark.parametrize(
  ('owner', 'function'),
  [
    (nn.Module, 'register_load_state_dict_post_hook'),
    (shown, 'register_optimizer_step_pre_hook'),
    (shown.Showing, 'note_versions'),
    (shown.Showing, 'end'),
    (shown, 'clear_autocast_cache'),
  ],
)
def test_an_interrupt_at_a_guard_blocks_nothing(
  owner, function, swap, monkeypatch
):
  net, averager = model(swap=swap)
  with monkeypatch.context() as patched:

    def interrupt(*args):
      raise KeyboardInterrupt

    patched.setattr(owner, function, interrupt)
    with pytest.raises(KeyboardInterrupt), averager.evaluating():
      pass
  averager.swap_out()
  assert net.weight.item() == 5.0
  net.weight.grad = torch.ones(1, 1)
  torch.optim.SGD(net.parameters(), lr=1.0).step()
  net.load_state_dict({'weight': torch.full((1, 1), 9.0)})
  averager.update()
  with averager.evaluating():
    assert net.weight.item() == 5.0  # the mean of 1, 5 and 9


@pytest.mark.parametrize('first', SWAPS)
@pytest.mark.parametrize('second', SWAPS)
def test_a_second_averager_is_refused_while_the_first_shows(first, second):
  net, one = model(swap=first)
  other = Averager(net, Ema(0.5), swap=second)
  other.update()
  with one.evaluating():
    with pytest.raises(RuntimeError, match=r'Another averager shows.*swap_in'):
      other.swap_in()
    with pytest.raises(RuntimeError, match=r'Another averager shows.*update'):
      other.update()
    assert net.weight.item() == 3.0
  with other.evaluating():
    assert net.weight.item() == 5.0
  assert net.weight.item() == 5.0


class OutOfMemory(TorchDispatchMode):
  """No memory for a tensor like another one, while it is on."""

  def __torch_dispatch__(self, func, types, args=(), kwargs=None):
    if func in (
      torch.ops.aten.empty_like.default,
      torch.ops.aten.clone.default,
    ):
      raise torch.OutOfMemoryError(func)
    return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('swap', SWAPS)
def test_a_swap_that_finds_no_memory_leaves_no_guard_behind(swap):
  net = nn.BatchNorm1d(1)
  averager = Averager(net, Polynomial(0.0), swap=swap)
  optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
  for value in (1.0, 5.0):
    net.weight.data.fill_(value)
    averager.update()
  with pytest.raises(torch.OutOfMemoryError), OutOfMemory():
    averager.swap_in()
  assert (averager.swapped, net.weight.item()) == (False, 5.0)
  net.weight.grad = torch.ones(1)
  optimizer.step()
  averager.update()
  with averager.evaluating():
    assert net.weight.item() == pytest.approx(10 / 3)
  assert net.weight.item() == 4.0


@pytest.mark.parametrize('scheme', [Ema(0.5), Raw()])
def test_an_averager_without_a_sample_does_not_take_an_average_for_raw(scheme):
  net, one = model()
  other = Averager(net, scheme)
  with one.evaluating():
    if isinstance(scheme, Raw):
      # Nothing is claimed of the weights: they are evaluated as they are.
      other.swap_in()
      assert net.weight.item() == 3.0
    else:
      with pytest.raises(RuntimeError, match=r'Another averager .* swap_in'):
        other.swap_in()
    with pytest.raises(RuntimeError, match=r'before averaged_state_dict\(\)'):
      other.averaged_state_dict()
  assert other.averaged_state_dict()['weight'].item() == 5.0


@pytest.mark.parametrize('swap', SWAPS)
def test_a_state_with_raw_weights_is_refused_before_it_writes(swap):
  net, one = model(swap=swap)
  with one.evaluating():
    saved = copy.deepcopy(one.state_dict())
    other = Averager(net, Polynomial(0.0))
    with pytest.raises(RuntimeError, match=r'before load_state_dict\(\)'):
      other.load_state_dict(saved)
    assert net.weight.item() == 3.0
    assert other.samples == 0
  with one.evaluating():
    assert net.weight.item() == 3.0


def test_an_averager_that_is_gone_blocks_no_other():
  net, one = model()
  one.swap_in()
  other = Averager(net, Ema(0.5))
  del one
  other.update()
  with other.evaluating():
    assert net.weight.item() == 3.0


def test_an_averager_that_is_gone_leaves_no_hook_behind():
  def hooks():
    return (
      len(optimizer_hooks),
      len(net._load_state_dict_pre_hooks),
      len(net._load_state_dict_post_hooks),
    )

  optimizer_hooks = optimizer._global_optimizer_pre_hooks
  net, one = model()
  gc.collect()
  with one.evaluating():
    pass
  before = hooks()
  other = Averager(net, Ema(0.5))
  other.update()
  one.swap_in()
  shown_by_one = hooks()
  del one
  gc.collect()
  other.swap_in()
  assert hooks() == shown_by_one
  other.swap_out()
  assert hooks() == before


@pytest.mark.parametrize('swap', SWAPS)
@pytest.mark.parametrize('kind', [torch.optim.AdamW, NadamW])
def test_an_optimizers_step_is_refused_before_it_writes(kind, swap):
  net, averager = model(swap=swap)
  optimizer = kind(net.parameters(), lr=0.1)
  net.weight.grad = torch.ones(1, 1)
  with averager.evaluating():
    with pytest.raises(RuntimeError, match=r'swap_out\(\) before a step'):
      optimizer.step()
    assert net.weight.item() == 3.0
  assert net.weight.item() == 5.0
  with averager.evaluating():
    assert net.weight.item() == 3.0
  optimizer.step()
  assert net.weight.item() != 5.0


def test_another_models_step_is_not_refused():
  _, averager = model()
  other = nn.Linear(1, 1)
  optimizer = torch.optim.SGD(other.parameters(), lr=1.0)
  other.weight.grad = torch.ones(1, 1)
  with averager.evaluating():
    optimizer.step()


@pytest.mark.parametrize('swap', SWAPS)
@pytest.mark.parametrize('assign', [False, True])
def test_loading_is_refused_before_it_writes(assign, swap):
  net, averager = model(swap=swap)
  whole = nn.Sequential(net)
  state = {'0.weight': torch.full((1, 1), 9.0)}
  with averager.evaluating():
    for target, given in ((whole, state), (net, {'weight': state['0.weight']})):
      with pytest.raises(RuntimeError, match=re.escape('weight is loaded')):
        target.load_state_dict(given, assign=assign)
    assert net.weight.item() == 3.0
  with averager.evaluating():
    assert net.weight.item() == 3.0
  net.load_state_dict({'weight': state['0.weight']})
  assert net.weight.item() == 9.0


@pytest.mark.parametrize('swap', SWAPS)
def test_loading_is_let_through_where_it_is_allowed(swap, caplog):
  net, averager = model(swap=swap)
  averager.swap_in(allow_load=True)
  net.load_state_dict({'weight': torch.full((1, 1), 9.0)})
  assert net.weight.item() == 9.0
  averager.swap_out()
  assert net.weight.item() == 5.0
  assert not caplog.records
  # The guard is back, and what was loaded is the average or lost.
  with averager.evaluating():
    assert net.weight.item() == (9.0 if swap == 'exchange' else 3.0)
    with pytest.raises(RuntimeError, match='weight is loaded'):
      net.load_state_dict({'weight': torch.zeros(1, 1)})


def test_a_restored_run_may_load_the_average_that_it_shows():
  net, averager = model()
  averager.swap_in()
  saved = copy.deepcopy([net.state_dict(), averager.state_dict()])
  fresh, restored = model(values=())
  restored.load_state_dict(saved[1])
  fresh.load_state_dict(saved[0])
  assert restored.swapped
  assert fresh.weight.item() == 3.0
  restored.swap_out()
  assert fresh.weight.item() == 5.0


def test_a_copy_made_while_shown_is_free():
  net, averager = model()
  with averager.evaluating():
    twin = copy.deepcopy(net)
    twin.load_state_dict({'weight': torch.zeros(1, 1)})
  assert twin.weight.item() == 0.0
  assert not net._load_state_dict_pre_hooks


@pytest.mark.parametrize(
  'clone',
  [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
  ids=['deepcopy', 'pickle'],
)
def test_a_copy_of_both_made_while_shown_is_guarded_by_itself(clone):
  net, averager = model()
  averager.swap_in()
  twin, other = clone((net, averager))
  for module in (net, twin):
    module.weight.grad = torch.ones(1, 1)
  with pytest.raises(RuntimeError, match=r'swap_out\(\) before a step'):
    torch.optim.SGD(twin.parameters(), lr=1.0).step()
  other.swap_out()
  torch.optim.SGD(twin.parameters(), lr=1.0).step()
  assert twin.weight.item() == 4.0
  # The swap of the copy has not ended that of the original.
  with pytest.raises(RuntimeError, match=r'swap_out\(\) before a step'):
    torch.optim.SGD(net.parameters(), lr=1.0).step()
  averager.swap_out()
  assert net.weight.item() == 5.0


@pytest.mark.parametrize(
  ('swap', 'consequence'),
  [('copy', 'That is lost now'), ('exchange', 'The average may have changed')],
)
def test_other_writes_are_logged_once(swap, consequence, caplog):
  net, averager = model(swap=swap)
  with caplog.at_level('WARNING', logger='absl'):
    with averager.evaluating():
      net(torch.ones(1, 1)).sum().backward()
      net.load_state_dict(net.state_dict())
    assert not caplog.text
    for _ in range(2):
      with averager.evaluating(), torch.no_grad():
        net.weight.add_(1.0)
  assert net.weight.item() == 5.0
  assert caplog.text.count("'weight' was written to while the model") == 1
  assert consequence in caplog.text


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_defaults_of_torch_change_no_average(dtype):
  net = nn.Linear(1, 1, bias=False)
  torch.set_default_dtype(dtype)
  try:
    with torch.device('meta'):
      averager = Averager(net, Ema(0.999))
      for value in (1.0, 2.0, 2.0):
        net.weight.data.fill_(value)
        averager.update()
      with averager.evaluating():
        shown = net.weight.item()
  finally:
    torch.set_default_dtype(torch.float32)
  total = 0.999**2 + 0.999 + 1.0
  # Two roundings in float32; in bfloat16 this would be 1.671875.
  assert shown == pytest.approx((0.999**2 + 2 * 0.999 + 2) / total, rel=2e-7)


def test_an_averager_built_in_inference_mode_follows_training():
  net = nn.Linear(1, 1, bias=False)
  with torch.inference_mode():
    averager = Averager(net, Polynomial(0.0))
  for value in (1.0, 5.0):
    net.weight.data.fill_(value)
    averager.update()
  with averager.evaluating():
    assert net.weight.item() == 3.0


def test_a_load_that_is_refused_writes_to_no_part_of_the_model():
  def build():
    return nn.Sequential(
      nn.Linear(2, 2).requires_grad_(False),
      nn.BatchNorm1d(2, affine=False),
      nn.Linear(2, 1),
    )

  model, other = build(), build()
  other[1].running_mean.fill_(7.0)
  averager = Averager(model, Ema(0.9), batch_norm='current')
  averager.update()
  before = copy.deepcopy(model.state_dict())
  with averager.evaluating(), pytest.raises(RuntimeError, match=r'2\.weight'):
    model.load_state_dict(other.state_dict())
  for key, value in model.state_dict().items():
    assert torch.equal(value, before[key]), key
