"""The average without a swap, and to and from other libraries."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks import timm_ema
from weightavg import Auto, Ema, Lawa, Polynomial
from weightavg.pytorch import Averager, finite


class Tied(nn.Module):
  """A head that shares the embedding, and a BatchNorm."""

  def __init__(self):
    super().__init__()
    self.embedding = nn.Embedding(5, 4)
    self.norm = nn.BatchNorm1d(4)
    self.frozen = nn.Linear(4, 4).requires_grad_(False)
    self.head = nn.Linear(4, 5, bias=False)
    self.head.weight = self.embedding.weight

  def forward(self, x):
    return self.head(self.frozen(self.norm(self.embedding(x))))


def trained(scheme, steps=4, wrap=None, **options):
  torch.manual_seed(0)
  model = Tied()
  wrapped = model if wrap is None else wrap(model)
  averager = Averager(wrapped, scheme, **options)
  for _ in range(steps):
    loss = wrapped(torch.randint(5, (8,))).square().mean()
    loss.backward()
    with torch.no_grad():
      for p in model.parameters():
        if p.grad is not None:
          p -= 0.1 * p.grad
          p.grad = None
    averager.update()
  return model, averager


SCHEMES = {
  'ema': (Ema(0.5), {}),
  'lawa': (Lawa(2), {'every': 1}),
  'polynomial': (Polynomial(1.0), {}),
}


def compiled(model):
  return torch.compile(model, backend='eager')


@pytest.mark.parametrize('wrap', [None, nn.DataParallel, compiled])
@pytest.mark.parametrize('name', SCHEMES)
def test_the_state_is_what_a_swap_shows(name, wrap):
  scheme, options = SCHEMES[name]
  model, averager = trained(scheme, wrap=wrap, **options)
  raw = copy.deepcopy(model.state_dict())
  state = averager.averaged_state_dict()
  with averager.evaluating():
    assert list(state) == list(model.state_dict())
    for key, value in model.state_dict().items():
      assert torch.equal(state[key], value), key
    assert not torch.equal(state['head.weight'], raw['head.weight'])
    during = averager.averaged_state_dict()
  for key, value in raw.items():
    assert torch.equal(model.state_dict()[key], value), key
    assert torch.equal(during[key], state[key]), key


def test_the_state_shares_no_memory_and_goes_through_safetensors(tmp_path):
  model, averager = trained(Ema(0.5))
  state = averager.averaged_state_dict()
  pointers = [t.data_ptr() for t in state.values()]
  assert len(set(pointers)) == len(pointers)
  save_file(state, tmp_path / 'average.safetensors')
  fresh = Tied()
  fresh.load_state_dict(load_file(tmp_path / 'average.safetensors'))
  with averager.evaluating():
    assert torch.equal(fresh.head.weight, model.head.weight)
  assert fresh.head.weight is fresh.embedding.weight


def halve(module, state, prefix, metadata):
  del module, metadata
  for key in [key for key in state if key.startswith(prefix)]:
    state[key] = state[key].half()


@pytest.mark.parametrize('is_shown', [False, True])
def test_a_hook_that_casts_the_state_casts_the_average(is_shown):
  model, averager = trained(Ema(0.5))
  plain = averager.averaged_state_dict()
  model.register_state_dict_post_hook(halve)
  raw = model.state_dict()
  if is_shown:
    averager.swap_in()
  state = averager.averaged_state_dict()
  assert averager.swapped == is_shown
  averager.swap_out()
  for key, value in plain.items():
    assert torch.equal(state[key], value.half()), key
    assert torch.equal(model.state_dict()[key], raw[key]), key
  assert not torch.equal(state['head.weight'], raw['head.weight'])


def test_before_the_first_sample_the_state_is_the_models_own():
  model, averager = trained(Ema(0.5), steps=0)
  for key, value in averager.averaged_state_dict().items():
    assert torch.equal(value, model.state_dict()[key])


def test_a_copy_follows_the_choice_and_leaves_the_model_alone():
  model, averager = trained(Auto([Ema(0.5), Ema(0.0)]))
  averager.choose([0.0, 1.0])
  other = compiled(Tied())
  averager.copy_to(other)
  result = averager.averaged_model()
  assert not result.training
  assert model.training
  assert not averager.swapped
  with averager.evaluating():
    assert torch.equal(result.head.weight, model.head.weight)
    assert torch.equal(other.head.weight, model.head.weight)
  assert not torch.equal(result.head.weight, model.head.weight)


def test_tensors_alone_have_no_state_dict():
  averager = Averager([('p', torch.ones(1))], Ema(0.5))
  with pytest.raises(RuntimeError, match='built from tensors'):
    averager.averaged_state_dict()


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


@pytest.mark.parametrize(
  ('other', 'message'),
  [
    (lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), r'1.weight. has'),
    (lambda: nn.Sequential(nn.Linear(2, 3)), r"lacks tensor '1\.bias'"),
    (
      lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(1, 1)),
      r"has the unknown tensor '2\.bias'",
    ),
  ],
)
def test_another_architecture_gets_nothing_of_an_average(other, message):
  model, target = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), other()
  before = {k: v.clone() for k, v in target.state_dict().items()}
  averager = Averager(model, Ema(0.5))
  averager.update()
  with pytest.raises(ValueError, match='Invalid model: .*' + message):
    averager.copy_to(target)
  for name, value in target.state_dict().items():
    assert torch.equal(value, before[name])


class Noted(nn.Linear):
  """A layer that keeps a note beside its tensors, as extra state."""

  def __init__(self, note):
    super().__init__(2, 1)
    self.note = note

  def get_extra_state(self):
    return self.note

  def set_extra_state(self, state):
    self.note = state


class Renamed(nn.Linear):
  """A layer that saves its tensors under other names, for another library."""

  def state_dict(self, *args, **kwargs):
    full = super().state_dict(*args, **kwargs)
    return {f'theirs.{name}': tensor for name, tensor in full.items()}


def test_the_model_itself_and_its_copy_need_no_state_dict():
  model = Renamed(2, 1)
  averager = Averager(model, Ema(0.5))
  for value in (0.0, 3.0):
    for parameter in model.parameters():
      parameter.data.fill_(value)
    averager.update()
  # (0.25 * 0 + 0.5 * 3) / 0.75
  assert averager.averaged_model().weight.tolist() == [[2.0, 2.0]]
  assert model.weight.tolist() == [[3.0, 3.0]]
  averager.copy_to(model)
  assert model.weight.tolist() == [[2.0, 2.0]]


def test_a_layers_extra_state_is_copied_with_the_average():
  averager = Averager(Noted('trained'), Ema(0.5))
  averager.update()
  target = Noted('new')
  averager.copy_to(target)
  assert target.note == 'trained'
  with pytest.raises(
    ValueError, match=r"'_extra_state' is a Tensor\. Must be no tensor\."
  ):
    averager.copy_to(Noted(torch.zeros(3)))


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
