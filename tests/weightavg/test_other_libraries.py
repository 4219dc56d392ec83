"""The average to and from other libraries: torch, ema-pytorch, timm."""

import numpy as np
import pytest
import torch
from tied_models import Tied, trained
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks import timm_ema
from weightavg import Ema, Lawa, Polynomial
from weightavg.pytorch import Averager, finite


def test_torchs_average_is_continued_and_given_back():
  model, _ = trained(Ema(0.5), steps=0)
  theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
  for _ in range(40):
    theirs.update_parameters(model)
    with torch.no_grad():
      model.head.weight += 0.1
  ours = Averager(model, Ema(0.75), batch_norm='current')
  ours.import_state(theirs.state_dict(), 'torch')
  assert (ours.samples, ours.step) == (40, 40)
  for _ in range(5):
    with torch.no_grad():
      model.head.weight += 0.1
    theirs.update_parameters(model)
    ours.update()
  with ours.evaluating():
    # Ours is normalised: c_41 differs from 1/4 by 0.75^41 < 1e-5.
    torch.testing.assert_close(
      model.head.weight, theirs.module.head.weight, rtol=1e-5, atol=1e-5
    )
  back = AveragedModel(Tied())
  back.load_state_dict(ours.export_state('torch'))
  assert back.n_averaged == 45
  state = ours.averaged_state_dict()
  assert torch.equal(back.module.head.weight, state['head.weight'])


class Wrapper(nn.Module):
  """A model whose only submodule has the name that DDP gives to its model."""

  def __init__(self, module=None):
    super().__init__()
    self.module = module or nn.Linear(2, 1)

  def forward(self, x):
    return self.module(x)


@pytest.mark.parametrize(
  'build', [Wrapper, lambda: nn.Sequential(Wrapper(), nn.Linear(1, 1))]
)
@pytest.mark.parametrize('wrap', [lambda model: model, Wrapper])
def test_a_submodule_called_module_is_found_in_torchs_average(build, wrap):
  """The states of DDP(model) and of Wrapper(model) have the same keys."""
  model = build()
  theirs = AveragedModel(wrap(model))
  theirs.update_parameters(wrap(model))
  ours = Averager(model, Ema(0.5))
  ours.import_state(theirs.state_dict(), 'torch')
  average = ours.averaged_state_dict()
  for name, weight in model.state_dict().items():
    assert torch.equal(average[name], weight)


def test_torchs_uniform_mean_is_a_polynomial_average_of_power_zero():
  model, _ = trained(Ema(0.5), steps=0)
  theirs, ours = AveragedModel(model), Averager(model, Polynomial(0.0))
  theirs.update_parameters(model)
  ours.import_state(theirs.state_dict(), 'torch')
  for _ in range(3):
    with torch.no_grad():
      model.head.weight += 1.0
    theirs.update_parameters(model)
    ours.update()
  with ours.evaluating():
    torch.testing.assert_close(model.head.weight, theirs.module.head.weight)


def test_ema_pytorch_reads_our_average_and_we_read_its():
  ema_pytorch = pytest.importorskip('ema_pytorch')
  model, averager = trained(Ema(0.5))
  theirs = ema_pytorch.EMA(Tied(), include_online_model=False)
  theirs.load_state_dict(averager.export_state('ema_pytorch'))
  state = averager.averaged_state_dict()
  assert torch.equal(theirs.ema_model.head.weight, state['head.weight'])
  fresh = Averager(model, Ema(0.5))
  with pytest.raises(ValueError, match=r'Invalid samples=None\. Must be an'):
    fresh.import_state(theirs.state_dict(), 'ema_pytorch')
  fresh.import_state(theirs.state_dict(), 'ema_pytorch', np.int64(4))
  assert fresh.samples == 4
  assert torch.equal(
    fresh.averaged_state_dict()['head.weight'], state['head.weight']
  )


def test_a_look_at_the_last_sample_is_no_look_at_an_imported_average():
  """On an accelerator the look is still under way when the state comes."""
  model, averager = trained(Ema(0.5), steps=1)
  theirs = AveragedModel(model)
  theirs.update_parameters(model)
  averager._looker.look = lambda *args: finite.Look(torch.ones(()))
  averager.update()
  averager.import_state(theirs.state_dict(), 'torch', samples=10)
  assert (averager.samples, averager.skipped) == (10, 1)


def test_a_bool_is_no_number_of_samples():
  model, averager = trained(Ema(0.5), steps=1)
  theirs = AveragedModel(model)
  with pytest.raises(
    ValueError, match=r'Invalid samples=True\. Must be an int'
  ):
    averager.import_state(theirs.state_dict(), 'torch', samples=True)


def test_ema_pytorch_continues_an_average_that_is_old_enough():
  ema_pytorch = pytest.importorskip('ema_pytorch')
  model, averager = trained(Ema(0.5), steps=6, every=2)
  theirs = ema_pytorch.EMA(
    model,
    beta=0.5,
    update_every=1,
    update_after_step=4,  # more than there are samples, less than steps
    include_online_model=False,
  )
  theirs.load_state_dict(averager.export_state('ema_pytorch'))
  theirs.update()
  weight = theirs.ema_model.head.weight
  assert not torch.equal(weight, model.head.weight)
  old = averager.averaged_state_dict()['head.weight']
  torch.testing.assert_close(weight, old.lerp(model.head.weight, 0.5))


def test_an_average_that_began_late_continues_at_the_next_step():
  model = nn.Linear(1, 1, bias=False)
  theirs = AveragedModel(model)
  for step in range(1, 8):
    model.weight.data.fill_(float(step))
    if step >= 6:
      theirs.update_parameters(model)
  ours = Averager(model, Polynomial(power=0), start=6)
  ours.import_state(theirs.state_dict(), 'torch')
  assert (ours.step, ours.samples) == (7, 2)
  model.weight.data.fill_(8.0)
  ours.update()
  with ours.evaluating():
    assert model.weight.item() == 7.0  # of 6, 7 and 8


def test_timms_average_needs_the_number_of_its_samples():
  """timm's ModelEmaV2 and V3 save `module.` and nothing else."""
  model, averager = trained(Ema(0.5))
  saved = averager.export_state('timm')
  assert set(saved) == {f'module.{key}' for key in model.state_dict()}
  fresh = Averager(model, Ema(0.5))
  with pytest.raises(ValueError, match=r'Invalid samples=None\. Must be an'):
    fresh.import_state(saved, 'timm')
  fresh.import_state(saved, 'timm', samples=1000)
  assert fresh.samples == 1000
  state = fresh.averaged_state_dict()
  assert torch.equal(state['head.weight'], saved['module.head.weight'])


@pytest.mark.parametrize(
  ('scheme', 'library', 'message'),
  [
    (Lawa(2), 'torch', 'Must keep a running average'),
    (Ema(0.5), 'keras', r"Invalid library='keras'\. Must be one of torch,"),
    (Ema(0.5), 'ema_pytorch', r"no key begins with 'ema_model\.'"),
    (Ema(0.5), 'torch', r"'embedding.weight' has shape \(2,\)\. Must be"),
  ],
)
def test_states_that_do_not_fit_are_refused(scheme, library, message):
  model, averager = trained(Ema(0.5))
  saved = averager.export_state('torch')
  saved['module.embedding.weight'] = torch.ones(2)
  fresh = Averager(model, scheme, every=1)
  with pytest.raises(ValueError, match=message):
    fresh.import_state(saved, library)
  assert fresh.samples == 0


@pytest.mark.parametrize(
  ('state', 'message'),
  [
    ({1: 2}, 'Invalid state: a dict. Must be its state_dict'),
    ([], 'Invalid state: a list. Must be its state_dict'),
    (
      {'module.weight': torch.ones(1), 'n_averaged': torch.ones(2)},
      r'Invalid state: n_averaged=tensor\(\[1., 1.\]\). Must be a number',
    ),
  ],
)
def test_what_is_no_average_of_torch_is_refused(state, message):
  averager = Averager(nn.Linear(1, 1, bias=False), Ema(0.5))
  with pytest.raises(ValueError, match=message):
    averager.import_state(state, 'torch')
  with pytest.raises(ValueError, match=r'Invalid model=None\. Must be a torch'):
    averager.copy_to(None)


@pytest.mark.parametrize('name', ['ModelEmaV2', 'ModelEmaV3'])
def test_timm_reads_our_average_and_we_continue_its(name):
  model_ema = timm_ema.load()
  if model_ema is None:
    pytest.skip('timm is not installed')
  model, averager = trained(Ema(0.5))
  theirs = getattr(model_ema, name)(model, decay=0.75)
  theirs.load_state_dict(averager.export_state('timm'))
  state = averager.averaged_state_dict()
  for key, value in theirs.module.state_dict().items():
    assert torch.equal(value, state[key]), key
  ours = Averager(model, Ema(0.75), batch_norm='current')
  ours.import_state(theirs.state_dict(), 'timm', samples=40)
  for _ in range(5):
    with torch.no_grad():
      model.norm.weight += 0.1
    theirs.update(model)
    ours.update()
  with ours.evaluating():
    # Ours is normalised: c_41 differs from 1/4 by 0.75^41 < 1e-5. timm moves a
    # tied weight once for each of its names: another one is compared.
    torch.testing.assert_close(
      model.norm.weight, theirs.module.norm.weight, rtol=1e-5, atol=1e-5
    )
