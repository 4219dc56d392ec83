"""Weight averaging as a callback of PyTorch Lightning."""

import copy
from collections.abc import Mapping
from typing import Any

import torch

try:
  from lightning import pytorch as pl
except ImportError:
  import pytorch_lightning as pl  # type: ignore[no-redef]

from weightavg.pytorch.averager import Averager
from weightavg.pytorch.integrations import check_options
from weightavg.schemes import Scheme

# The averager's state in a Lightning checkpoint.
_KEY = 'weightavg_averager'
# Strategies that cut parameters into pieces of their own or replace them.
_REFUSED = ('FSDPStrategy', 'DeepSpeedStrategy')


class AveragingCallback(pl.Callback):
  """Averages a LightningModule's weights, and validates on the average.

  Trained are the module's own weights. Validation sees the average, in the
  module's hooks from `on_validation_start` to `on_validation_epoch_end`
  (`on_validation_end` comes after the swap back). So does whoever reads
  `state_dict` from a checkpoint: `trainer.test(ckpt_path=...)` and
  `load_from_checkpoint` get averaged weights. The checkpoint holds the raw
  weights, too, and `trainer.fit(ckpt_path=...)` resumes from them exactly.
  After `fit` the module holds the average, and so does a checkpoint that
  `trainer.save_checkpoint` writes then. If other weights have been loaded into
  the module since, the checkpoint is the one that Lightning writes without the
  callback.

  The averager counts training batches in which optimizers step: with
  `accumulate_grad_batches` one for each accumulated batch, and with several
  optimizers one for all of their steps.

  Args:
    scheme: the average, such as Ema(0.999) or Lawa(window=5).
    average_at_end: put the average into the module when `fit` ends; False
      leaves the raw weights there.
    **options: arguments of `Averager`. A horizon needs `total_steps`, which is
      `trainer.estimated_stepping_batches` unless given.

  During `fit` a checkpoint by `trainer.save_checkpoint(weights_only=True)`
  holds the raw weights: Lightning asks no callback for it.

  Raises:
    ValueError: for an interpolation; from `fit`, for a strategy that shards the
      parameters with FSDP1 or DeepSpeed, and for a ModelCheckpoint with
      save_weights_only=True.

  >>> from weightavg import Ema
  >>> callback = AveragingCallback(Ema(0.999))  # Trainer(callbacks=[callback])
  """

  def __init__(
    self, scheme: Scheme, *, average_at_end: bool = True, **options: Any
  ) -> None:
    check_options(scheme, options)
    self._scheme = scheme
    self._average_at_end = average_at_end
    self._options = options
    self._restored: dict[str, Any] | None = None
    self._last_step = 0
    # After `fit`, what a checkpoint needs to resume: the raw weights, too.
    self._finished: dict[str, Any] | None = None
    # The parameters that the last `fit` has left in its module.
    self._left: dict[str, torch.Tensor] | None = None
    self.averager: Averager | None = None

  def setup(
    self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str
  ) -> None:
    """Forget what a run restored that was refused before its first step."""
    del trainer, pl_module, stage
    self._restored = None

  def on_fit_start(
    self, trainer: pl.Trainer, pl_module: pl.LightningModule
  ) -> None:
    """Build the averager, on the device of the module, and restore it."""
    strategy = type(trainer.strategy).__name__
    if strategy in _REFUSED:
      raise ValueError(
        f'Invalid strategy={strategy}. Must keep whole parameters on each '
        'rank, as DDPStrategy and SingleDeviceStrategy do.'
      )
    for callback in trainer.checkpoint_callbacks:
      if getattr(callback, 'save_weights_only', False):
        raise ValueError(
          'Invalid save_weights_only=True of a ModelCheckpoint. Must be False: '
          'Lightning would save the raw weights.'
        )
    self._finished = self._left = None
    options = dict(self._options)
    if options.get('total_steps') is None:
      planned = trainer.estimated_stepping_batches
      # Without a limit there is no budget; a horizon then raises.
      options['total_steps'] = int(planned) if 0 < planned < 2**62 else None
    options.setdefault('collective', trainer.world_size > 1)
    self.averager = Averager(pl_module, self._scheme, **options)
    self._last_step = trainer.global_step
    if self._restored is not None:
      self.averager.load_state_dict(self._restored['averager'])
      # The checkpoint's state_dict is the average; training needs the raw
      # weights, which came with the averager's state.
      self.averager.swap_out()
      self._last_step = self._restored['global_step']
      self._restored = None

  def on_train_batch_end(
    self,
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    outputs: Any,
    batch: Any,
    batch_idx: int,
  ) -> None:
    """Count the batch if an optimizer has stepped."""
    del pl_module, outputs, batch, batch_idx
    if self.averager is not None and trainer.global_step != self._last_step:
      self._last_step = trainer.global_step
      self.averager.update()

  def on_validation_start(
    self, trainer: pl.Trainer, pl_module: pl.LightningModule
  ) -> None:
    """Show the average to a validation during `fit`."""
    del pl_module
    if self.averager is not None and trainer.state.fn == 'fit':
      self.averager.swap_in()

  def on_validation_end(
    self, trainer: pl.Trainer, pl_module: pl.LightningModule
  ) -> None:
    """Put the raw weights back."""
    del trainer, pl_module
    if self.averager is not None:
      self.averager.swap_out()

  def on_exception(
    self,
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    exception: BaseException,
  ) -> None:
    """Put the raw weights back where a validation ended halfway."""
    del trainer, pl_module, exception
    if self.averager is not None:
      self.averager.swap_out()

  def on_fit_end(
    self, trainer: pl.Trainer, pl_module: pl.LightningModule
  ) -> None:
    """Leave the average in the module, after the last checkpoint."""
    averager = self.averager
    if averager is None:
      return
    if self._average_at_end and averager.samples:
      self._finished = copy.deepcopy(self._state(trainer, averager))
      averager.copy_to(pl_module)
    self._left = {
      name: parameter.detach().clone()
      for name, parameter in pl_module.named_parameters()
    }

  def on_save_checkpoint(
    self,
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    checkpoint: dict[str, Any],
  ) -> None:
    """Save the average as the model, and the raw weights beside it."""
    averager = self.averager
    if averager is None:
      return
    if self._left is not None and not _holds(pl_module, self._left):
      # Loaded since `fit`; a resumed run starts from them, not from our state.
      return
    if self._finished is not None:
      # The module holds the average.
      checkpoint[_KEY] = self._finished
      return
    checkpoint['state_dict'] = averager.averaged_state_dict()
    checkpoint[_KEY] = self._state(trainer, averager)

  def _state(self, trainer: pl.Trainer, averager: Averager) -> dict[str, Any]:
    # Inside the block the averager's state holds the raw weights.
    with averager.evaluating():
      return {
        'averager': averager.state_dict(),
        'global_step': trainer.global_step,
      }

  def on_load_checkpoint(
    self,
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    checkpoint: dict[str, Any],
  ) -> None:
    """Keep the averager's state until the module is on its device."""
    del pl_module
    # A test or a validation loads checkpoints, too, and resumes nothing.
    if trainer.state.fn == 'fit':
      self._restored = checkpoint.get(_KEY)


def _holds(
  module: torch.nn.Module, parameters: Mapping[str, torch.Tensor]
) -> bool:
  own = dict(module.named_parameters())
  return own.keys() == parameters.keys() and all(
    torch.equal(own[name], parameter.to(own[name]))
    for name, parameter in parameters.items()
  )
