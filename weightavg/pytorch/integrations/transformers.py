"""Weight averaging as a callback of Hugging Face's Trainer."""

import os
import warnings
from typing import Any

import torch
from transformers import (
  PreTrainedModel,
  TrainerCallback,
  TrainerControl,
  TrainerState,
  TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from weightavg.pytorch import export
from weightavg.pytorch.averager import Averager
from weightavg.pytorch.integrations import check_options
from weightavg.schemes import Scheme

# In a checkpoint's folder, beside the model's file.
STATE_FILE = 'averager.pt'


class AveragingCallback(TrainerCallback):
  """Averages the weights that a Trainer trains, and evaluates the average.

  Trained are the model's own weights. Evaluation sees the average, and each
  checkpoint holds it as the model: `from_pretrained` on the checkpoint's folder
  loads averaged weights. `averager.pt` in the same folder holds the averager's
  state and the raw weights, and `trainer.train(resume_from_checkpoint=...)`
  resumes from them exactly. After `train` the model holds the average, unless
  `load_best_model_at_end` has put the best checkpoint there, which is one.

  The averager counts optimizer steps: with `gradient_accumulation_steps` one
  for each accumulated batch.

  Args:
    scheme: the average, such as Ema(0.999) or Lawa(window=5).
    average_at_end: put the average into the model when `train` ends; False
      leaves the raw weights there.
    resume_from: folder of the checkpoint that a run resumes from, where it is
      not in the Trainer's output directory.
    **options: arguments of `Averager`. A horizon needs `total_steps`, which is
      the Trainer's number of steps unless given.

  Raises:
    ValueError: for an interpolation; from `train`, for save_strategy='best',
      which decides about a checkpoint after the evaluation has ended; for
      enable_jit_checkpoint, which tells no callback; for FSDP or DeepSpeed; and
      where a run resumes from a checkpoint without `averager.pt`.

  >>> from weightavg import Ema
  >>> callback = AveragingCallback(Ema(0.999))  # Trainer(callbacks=[callback])
  """

  def __init__(
    self,
    scheme: Scheme,
    *,
    average_at_end: bool = True,
    resume_from: str | None = None,
    **options: Any,
  ) -> None:
    check_options(scheme, options)
    self._scheme = scheme
    self._average_at_end = average_at_end
    self._resume_from = resume_from
    self._options = options
    self.averager: Averager | None = None
    # Between the end of a step and the begin of the next one.
    self._is_between = False
    self._is_shown = False

  def on_train_begin(
    self,
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    model: PreTrainedModel | torch.nn.Module | None = None,
    **kwargs: Any,
  ) -> None:
    """Build the averager; restore it where the run resumes."""
    del control, kwargs
    _check(args, state)
    assert model is not None
    if self.averager is not None:
      # An evaluation that has failed left its average in the model: the
      # Trainer has no hook for that.
      self._put_back()
    options = dict(self._options)
    options.setdefault('total_steps', state.max_steps)
    options.setdefault('collective', args.world_size > 1)
    self.averager = Averager(model, self._scheme, **options)
    if state.global_step:
      self._restore(self.averager, args, state.global_step)
    self._is_between = args.eval_on_start
    if args.eval_on_start:
      self._show(args)

  def on_step_begin(
    self,
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    **kwargs: Any,
  ) -> None:
    """Put the raw weights back: training goes on."""
    del args, state, control, kwargs
    self._is_between = False
    self._put_back()

  def _restore(
    self, averager: Averager, args: TrainingArguments, step: int
  ) -> None:
    folder = self._resume_from or _checkpoint_folder(args, step)
    path = os.path.join(folder, STATE_FILE)
    if not os.path.isfile(path):
      raise ValueError(
        f'Missing {path}. Give AveragingCallback(resume_from=...) the folder '
        'of a checkpoint that this callback has written.'
      )
    content = torch.load(path, map_location='cpu', weights_only=True)
    if content['step'] != step:
      raise ValueError(
        f'Invalid {path}: of step {content["step"]}, the run resumes from '
        f'step {step}.'
      )
    averager.load_state_dict(content)
    averager.swap_out()

  def on_step_end(
    self,
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    **kwargs: Any,
  ) -> None:
    """Count an optimizer step; show the average to what follows it."""
    del state, kwargs
    assert self.averager is not None
    self.averager.update()
    self._show_if_due(args, control)

  def on_epoch_end(
    self,
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    **kwargs: Any,
  ) -> None:
    """Show the average to an evaluation or a checkpoint of this epoch."""
    del state, kwargs
    self._show_if_due(args, control)

  def _show_if_due(
    self, args: TrainingArguments, control: TrainerControl
  ) -> None:
    # The Trainer has no hook that precedes an evaluation; its own callback has
    # decided on one before this callback runs.
    self._is_between = True
    if control.should_evaluate or control.should_save:
      self._show(args)

  def _show(self, args: TrainingArguments) -> None:
    # Until training goes on: there may be several sets to evaluate. The best
    # checkpoint is loaded before `on_train_end`.
    assert self.averager is not None
    self.averager.swap_in(allow_load=args.load_best_model_at_end)
    self._is_shown = True

  def _put_back(self) -> None:
    assert self.averager is not None
    self.averager.swap_out()
    self._is_shown = False

  def _check_shown(self, event: str) -> None:
    if self._is_between and not self._is_shown:
      warnings.warn(
        f'{event} has got the raw weights. AveragingCallback must be last in '
        'the list of callbacks, for others to ask for evaluations and '
        'checkpoints before it.',
        stacklevel=3,
      )

  def on_evaluate(
    self,
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    **kwargs: Any,
  ) -> None:
    """Warn if the raw weights were evaluated."""
    del args, state, control, kwargs
    self._check_shown('An evaluation')

  def on_save(
    self,
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    **kwargs: Any,
  ) -> None:
    """Write the averager's state into the checkpoint's folder."""
    del control, kwargs
    assert self.averager is not None
    # Another callback has asked for it: `_check` refuses the Trainer's own.
    _check_no_search(state)
    self._check_shown('A checkpoint')
    if args.should_save:
      folder = _checkpoint_folder(args, state.global_step)
      path = os.path.join(folder, STATE_FILE)
      torch.save(self.averager.state_dict(), path + '.temporary')
      os.replace(path + '.temporary', path)
    self._put_back()

  def on_train_end(
    self,
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    model: PreTrainedModel | torch.nn.Module | None = None,
    **kwargs: Any,
  ) -> None:
    """Leave the average in the model."""
    del state, control, kwargs
    averager = self.averager
    assert averager is not None
    assert model is not None
    self._is_between = False
    if args.load_best_model_at_end and self._is_shown:
      # Loaded over the average that is shown.
      best = export.copies(model.state_dict())
      self._put_back()
      model.load_state_dict(best)
      return
    self._put_back()
    if (
      self._average_at_end
      and averager.samples
      and not args.load_best_model_at_end
    ):
      averager.copy_to(model)


def _checkpoint_folder(args: TrainingArguments, step: int) -> str:
  assert args.output_dir is not None
  return os.path.join(args.output_dir, f'{PREFIX_CHECKPOINT_DIR}-{step}')


def _check_no_search(state: TrainerState) -> None:
  if state.is_hyper_param_search:
    raise ValueError(
      'Invalid checkpoint in a hyperparameter search. Must be none, as with '
      "save_strategy='no': no callback is told the folder of a trial's "
      'checkpoints.'
    )


def _check(args: TrainingArguments, state: TrainerState) -> None:
  if args.save_strategy != 'no':
    _check_no_search(state)
  if args.save_strategy == 'best':
    raise ValueError(
      "Invalid save_strategy='best'. Must be 'steps', 'epoch' or 'no': with "
      "'best' the Trainer decides after the average is put away."
    )
  if getattr(args, 'enable_jit_checkpoint', False):
    raise ValueError(
      'Invalid enable_jit_checkpoint=True. Must be False: the Trainer tells no '
      'callback of such a checkpoint, which would hold the raw weights and '
      'could not be resumed from.'
    )
  for name in ('fsdp', 'deepspeed'):
    value = getattr(args, name, None)
    if value:
      raise ValueError(
        f'Invalid {name}={value!r}. Must be unset: the callback needs whole '
        'parameters on each rank.'
      )
