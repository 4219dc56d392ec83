"""The callback in real Lightning loops: validated, killed and resumed."""

import warnings

import pytest
import torch

pl = pytest.importorskip(
  'lightning.pytorch', reason='lightning is not installed'
)

from lightning.fabric import Fabric
from primal_runs import train_with_a_bad_step
from torch.utils.data import DataLoader, TensorDataset

from weightavg import Ema, Lawa, ScheduleFree
from weightavg.pytorch import NadamW
from weightavg.pytorch.integrations.lightning import AveragingCallback

STEPS = 12


@pytest.fixture(autouse=True)
def quiet():
  """Lightning warns of few workers and short loops, which is no fault here."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield


def loader(batches=6):
  generator = torch.Generator().manual_seed(5)
  inputs = torch.randn(4 * batches, 3, generator=generator)
  return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), 4)


class Module(pl.LightningModule):
  """A linear layer behind BatchNorm that notes the weights it is run with."""

  def __init__(self):
    super().__init__()
    self.layers = torch.nn.Sequential(
      torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1)
    )
    self.trained, self.validated, self.tested = [], [], []
    self.epochs = []

  def loss(self, batch):
    return (self.layers(batch[0]) - batch[1]).square().mean()

  def training_step(self, batch, _):
    return self.loss(batch)

  def on_train_batch_end(self, *_):
    self.trained.append(flat(self))

  def validation_step(self, batch, _):
    self.validated.append(flat(self))
    self.log('val_loss', self.loss(batch))

  def on_validation_epoch_end(self):
    self.epochs.append(flat(self))

  def test_step(self, batch):
    self.tested.append(flat(self))

  def configure_optimizers(self):
    return torch.optim.AdamW(self.parameters(), lr=0.05)


class Killed(Module):
  def training_step(self, batch, index):
    if self.global_step == 8:
      raise KeyboardInterrupt
    return super().training_step(batch, index)


def flat(module):
  return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def fit(
  folder, callbacks, make=Module, ckpt_path=None, max_steps=STEPS, **kwargs
):
  torch.manual_seed(0)
  module = make()
  trainer = pl.Trainer(
    max_steps=max_steps,
    callbacks=callbacks,
    accelerator='cpu',
    logger=False,
    default_root_dir=folder,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
    **{'val_check_interval': 3, **kwargs},
  )
  trainer.fit(module, loader(), loader(1), ckpt_path=ckpt_path)
  return trainer, module


def checkpointing(folder, name='every'):
  return pl.callbacks.ModelCheckpoint(
    folder / name, save_top_k=-1, every_n_train_steps=3, filename='{step}'
  )


def test_training_is_that_without_the_callback(tmp_path):
  _, plain = fit(tmp_path, [checkpointing(tmp_path, 'a')])
  averaged = [AveragingCallback(Ema(0.5)), checkpointing(tmp_path, 'b')]
  _, module = fit(tmp_path, averaged)
  assert len(module.trained) == STEPS
  for one, other in zip(plain.trained, module.trained, strict=True):
    assert torch.equal(one, other)


def test_validation_sees_the_mean_of_the_last_two_steps(tmp_path):
  _, module = fit(tmp_path, [AveragingCallback(Lawa(window=2), every=1)])
  for index, step in enumerate((3, 6, 9, 12)):
    mean = (module.trained[step - 2] + module.trained[step - 1]) / 2
    torch.testing.assert_close(module.validated[index], mean)
    assert not torch.equal(module.validated[index], module.trained[step - 1])
    assert torch.equal(module.epochs[index], module.validated[index])


def test_accumulated_batches_count_once(tmp_path):
  callback = AveragingCallback(Ema(0.5))
  fit(tmp_path, [callback], max_steps=3, accumulate_grad_batches=2)
  assert callback.averager.step == callback.averager.samples == 3


def test_the_module_holds_the_average_after_fit(tmp_path):
  callback = AveragingCallback(Ema(0.5))
  _, module = fit(tmp_path, [callback])
  average = callback.averager.averaged_state_dict()
  for name, tensor in module.state_dict().items():
    assert torch.equal(tensor, average[name])
  assert not torch.equal(flat(module), module.trained[-1])
  _, raw = fit(tmp_path, [AveragingCallback(Ema(0.5), average_at_end=False)])
  assert torch.equal(flat(raw), module.trained[-1])


class Partial(Module):
  """Saves its linear layer alone, as Lightning's documentation shows."""

  def __init__(self):
    super().__init__()
    self.strict_loading = False

  def state_dict(self):
    return {k: v for k, v in super().state_dict().items() if '.1.' in k}


class Filtered(Partial):
  def state_dict(self, *args, **kwargs):
    full = Module.state_dict(self, *args, **kwargs)
    return {k: v for k, v in full.items() if '.1.' in k}


@pytest.mark.parametrize('make', [Partial, Filtered])
def test_a_module_may_save_a_part_of_itself(make, tmp_path):
  callback = AveragingCallback(Ema(0.5))
  _, module = fit(tmp_path, [callback, checkpointing(tmp_path)], make)
  average = callback.averager.averaged_state_dict()
  assert average.keys() == {'layers.1.weight', 'layers.1.bias'}
  assert not torch.equal(flat(module), module.trained[-1])
  # The rest, too, though it is not saved.
  assert torch.equal(flat(module), flat(callback.averager.averaged_model()))
  for name, tensor in average.items():
    assert torch.equal(module.get_parameter(name), tensor)


def test_a_checkpoint_holds_the_average_for_test_and_inference(tmp_path):
  callbacks = [AveragingCallback(Lawa(window=2), every=1)]
  trainer, module = fit(tmp_path, [*callbacks, checkpointing(tmp_path)])
  path = tmp_path / 'every' / 'step=6.ckpt'
  mean = (module.trained[4] + module.trained[5]) / 2
  loaded = Module.load_from_checkpoint(path)
  torch.testing.assert_close(flat(loaded), mean)
  trainer.test(module, loader(1), ckpt_path=path)
  torch.testing.assert_close(module.tested[-1], mean)


@pytest.mark.parametrize('swap', ['copy', 'exchange'])
def test_an_interrupted_run_resumes_exactly(tmp_path, swap):
  def callbacks(name):
    return [
      AveragingCallback(Ema(0.9), swap=swap),
      checkpointing(tmp_path, name),
    ]

  whole = callbacks('whole')
  _, undisturbed = fit(tmp_path, whole)
  with pytest.raises((KeyboardInterrupt, SystemExit)):
    fit(tmp_path, callbacks('cut'), Killed)
  path = tmp_path / 'cut' / 'step=6.ckpt'
  again = callbacks('again')
  _, resumed = fit(tmp_path, again, ckpt_path=path)
  for one, other in zip(undisturbed.trained[6:], resumed.trained, strict=True):
    assert torch.equal(one, other)
  assert torch.equal(undisturbed.validated[-1], resumed.validated[-1])
  assert again[0].averager.step == whole[0].averager.step == STEPS


@pytest.mark.parametrize('method', ['test', 'validate'])
def test_a_checkpoint_that_is_tested_is_not_resumed(tmp_path, method):
  callback = AveragingCallback(Ema(0.9))
  trainer, module = fit(tmp_path, [callback], max_steps=6)
  path = tmp_path / 'tested.ckpt'
  trainer.save_checkpoint(path)
  getattr(trainer, method)(module, loader(1), ckpt_path=path, verbose=False)
  _, again = fit(tmp_path, [callback])
  _, fresh = fit(tmp_path, [AveragingCallback(Ema(0.9))])
  assert torch.equal(again.trained[0], fresh.trained[0])
  assert callback.averager.samples == STEPS


@pytest.mark.parametrize('average_at_end', [True, False])
def test_a_checkpoint_holds_what_was_loaded_after_fit(average_at_end, tmp_path):
  averaging = AveragingCallback(Ema(0.9), average_at_end=average_at_end)
  trainer, module = fit(tmp_path, [averaging, checkpointing(tmp_path)])
  early = tmp_path / 'every' / 'step=6.ckpt'
  trainer.test(module, loader(1), ckpt_path=early)
  path = tmp_path / 'final.ckpt'
  trainer.save_checkpoint(path)
  saved = torch.load(path, weights_only=False)['state_dict']
  for name, tensor in module.state_dict().items():
    assert torch.equal(saved[name], tensor)


@pytest.mark.parametrize('average_at_end', [True, False])
def test_a_run_resumes_from_what_was_loaded_after_fit(average_at_end, tmp_path):
  averaging = AveragingCallback(Ema(0.9), average_at_end=average_at_end)
  trainer, module = fit(tmp_path, [averaging, checkpointing(tmp_path)])
  trainer.test(module, loader(1), ckpt_path=tmp_path / 'every' / 'step=6.ckpt')
  path = tmp_path / 'final.ckpt'
  trainer.save_checkpoint(path)
  seen = []

  class Started(Module):
    def on_train_start(self):
      seen.append(flat(self))

  again = AveragingCallback(Ema(0.9))
  fit(tmp_path, [again], Started, path, max_steps=STEPS + 3)
  assert torch.equal(seen[0], flat(module))


def test_a_resumption_that_is_refused_leaves_the_next_fit_alone(tmp_path):
  callback = AveragingCallback(Ema(0.9))
  trainer, _ = fit(tmp_path, [callback], max_steps=6)
  path = tmp_path / 'after.ckpt'
  trainer.save_checkpoint(path)
  raw = pl.callbacks.ModelCheckpoint(tmp_path, save_weights_only=True)
  with pytest.raises(ValueError, match='Invalid save_weights_only=True'):
    fit(tmp_path, [callback, raw], ckpt_path=path)
  fit(tmp_path, [callback])
  assert callback.averager.samples == STEPS


@pytest.mark.parametrize('average_at_end', [True, False])
def test_a_checkpoint_saved_after_fit_holds_the_average(
  average_at_end, tmp_path
):
  callback = AveragingCallback(Ema(0.9), average_at_end=average_at_end)
  trainer, module = fit(tmp_path, [callback], max_steps=6)
  trainer.test(module, loader(1))
  path = tmp_path / 'after.ckpt'
  trainer.save_checkpoint(path)
  saved = torch.load(path, weights_only=False)['state_dict']
  average = callback.averager.averaged_state_dict()
  assert saved.keys() == average.keys()
  assert all(torch.equal(saved[n], average[n]) for n in average)
  _, undisturbed = fit(tmp_path, [AveragingCallback(Ema(0.9))])
  _, resumed = fit(tmp_path, [AveragingCallback(Ema(0.9))], ckpt_path=path)
  for one, other in zip(undisturbed.trained[6:], resumed.trained, strict=True):
    assert torch.equal(one, other)


def test_an_interrupted_validation_puts_the_raw_weights_back(tmp_path):
  class Interrupted(Module):
    def validation_step(self, batch, _):
      raise RuntimeError('no data')

  made = []
  callback = AveragingCallback(Ema(0.5))
  with pytest.raises(RuntimeError, match='no data'):
    fit(tmp_path, [callback], lambda: made.append(Interrupted()) or made[0])
  assert not callback.averager.swapped
  assert torch.equal(flat(made[0]), made[0].trained[-1])


def test_a_horizon_is_a_fraction_of_the_trainers_steps(tmp_path):
  callback = AveragingCallback(Lawa(horizon=0.5))
  fit(tmp_path, [callback])
  assert callback.averager.scheme.size == STEPS // 2


def test_the_average_equals_that_of_lightnings_own_callback(tmp_path):
  """Ours is bias-corrected; theirs starts from the first sample. With LAWA of
  all steps and their uniform mean both are the same number.
  """
  theirs = pl.callbacks.WeightAveraging(use_buffers=True)
  _, module = fit(tmp_path, [theirs])
  ours = AveragingCallback(Lawa(window=STEPS), every=1)
  _, own = fit(tmp_path, [ours])
  torch.testing.assert_close(flat(module), flat(own))


def test_strategies_that_shard_parameters_are_refused():
  class FSDPStrategy:
    pass

  class Trainer:
    strategy = FSDPStrategy()

  with pytest.raises(ValueError, match='Invalid strategy=FSDPStrategy'):
    AveragingCallback(Ema(0.5)).on_fit_start(Trainer(), Module())


def test_checkpoints_of_raw_weights_alone_are_refused(tmp_path):
  callbacks = [
    AveragingCallback(Ema(0.5)),
    pl.callbacks.ModelCheckpoint(tmp_path, save_weights_only=True),
  ]
  with pytest.raises(ValueError, match='Invalid save_weights_only=True'):
    fit(tmp_path, callbacks)


@pytest.mark.parametrize(
  ('scheme', 'options'),
  [(Ema(0.9), {'interpolation': 0.9}), (ScheduleFree(), {})],
)
def test_an_average_that_takes_part_in_training_is_refused(scheme, options):
  with pytest.raises(ValueError, match=r'=0\.9\. Must be 0 in a c'):
    AveragingCallback(scheme, **options)
  AveragingCallback(Ema(0.9), interpolation=0.0)


def test_a_decay_alone_is_no_scheme():
  with pytest.raises(
    ValueError, match=r'Invalid scheme=0\.999\. Must be a sch'
  ):
    AveragingCallback(0.999)


def test_nadamw_inside_fabric_leaves_a_bad_step_out():
  def run(fabric):
    torch.manual_seed(0)
    module = model = torch.nn.Linear(3, 1)
    optimizer = NadamW(model.parameters(), lr=0.05, betas=(0.0, 0.9))
    if fabric is not None:
      model, optimizer = fabric.setup(model, optimizer)
    averager = train_with_a_bad_step(model, optimizer, module)
    assert (averager.samples, averager.skipped) == (5, 1)
    return flat(module)

  fabric = Fabric(accelerator='cpu', devices=1)
  assert torch.equal(run(fabric), run(None))
