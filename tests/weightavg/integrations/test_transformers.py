"""The callback in a real Trainer; the averager under a real Accelerate."""

import warnings

import pytest
import torch

transformers = pytest.importorskip(
  'transformers', reason='transformers is not installed'
)
accelerate = pytest.importorskip(
  'accelerate', reason='accelerate is not installed'
)

from primal_runs import train_with_a_bad_step
from safetensors.torch import load_file

from weightavg import Ema, Lawa, ScheduleFree
from weightavg.pytorch import Averager, NadamW
from weightavg.pytorch.integrations.transformers import AveragingCallback

STEPS = 12


class Examples(torch.utils.data.Dataset):
  def __init__(self, count):
    generator = torch.Generator().manual_seed(7)
    self.inputs = torch.randn(count, 3, generator=generator)

  def __len__(self):
    return len(self.inputs)

  def __getitem__(self, index):
    return {'x': self.inputs[index], 'labels': self.inputs[index].sum()[None]}


class Configuration(transformers.PretrainedConfig):
  model_type = 'weightavg_test'


class Model(transformers.PreTrainedModel):
  """A linear layer that notes the weights it is run with."""

  config_class = Configuration

  def __init__(self, config):
    super().__init__(config)
    self.layer = torch.nn.Linear(3, 1)
    self.trained, self.evaluated = [], []
    self.post_init()

  def forward(self, x, labels=None):
    (self.trained if self.training else self.evaluated).append(flat(self))
    output = self.layer(x)
    return {'loss': (output - labels).square().mean(), 'logits': output}


class Killed(Exception):
  pass


class Killer(transformers.TrainerCallback):
  def on_step_begin(self, args, state, control, **kwargs):
    if state.global_step == 8:
      raise Killed


def flat(model):
  return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def trainer_of(folder, callbacks, **arguments):
  torch.manual_seed(0)
  settings = {
    'max_steps': STEPS,
    'per_device_train_batch_size': 4,
    'learning_rate': 0.05,
    'eval_strategy': 'steps',
    'eval_steps': 3,
    'save_strategy': 'steps',
    'save_steps': 3,
    'report_to': 'none',
    'use_cpu': True,
    'disable_tqdm': True,
    'logging_strategy': 'no',
    'dataloader_pin_memory': False,
  } | arguments
  return transformers.Trainer(
    Model(Configuration()),
    transformers.TrainingArguments(str(folder), **settings),
    train_dataset=Examples(24),
    eval_dataset=Examples(4),
    callbacks=callbacks,
  )


def train(folder, callbacks, resume=None, **arguments):
  trainer = trainer_of(folder, callbacks, **arguments)
  trainer.train(resume_from_checkpoint=resume)
  return trainer.model


def test_training_is_that_without_the_callback(tmp_path):
  plain = train(tmp_path / 'a', [])
  averaged = train(tmp_path / 'b', [AveragingCallback(Ema(0.5))])
  assert len(plain.trained) == STEPS
  for one, other in zip(plain.trained, averaged.trained, strict=True):
    assert torch.equal(one, other)


def test_evaluations_and_checkpoints_see_the_mean_of_two_steps(tmp_path):
  callback = AveragingCallback(Lawa(window=2), every=1, average_at_end=False)
  model = train(tmp_path, [callback])
  # What the n-th forward pass saw is the weights after n - 1 steps.
  after = [*model.trained[1:], flat(model)]
  for index, step in enumerate((3, 6, 9, 12)):
    mean = (after[step - 2] + after[step - 1]) / 2
    torch.testing.assert_close(model.evaluated[index], mean)
    saved = load_file(tmp_path / f'checkpoint-{step}' / 'model.safetensors')
    weights = torch.cat(
      [saved[n].reshape(-1) for n, _ in model.named_parameters()]
    )
    torch.testing.assert_close(weights, mean)


def test_evaluation_and_saving_by_epoch(tmp_path):
  callback = AveragingCallback(Ema(0.5), average_at_end=False)
  model = train(
    tmp_path, [callback], eval_strategy='epoch', save_strategy='epoch'
  )
  assert len(model.evaluated) == 2
  assert not torch.equal(model.evaluated[0], model.trained[6])
  assert not callback.averager.swapped


@pytest.mark.parametrize('swap', ['copy', 'exchange'])
def test_a_killed_run_resumes_exactly(tmp_path, swap):
  def callback():
    return AveragingCallback(Ema(0.9), swap=swap)

  whole = train(tmp_path / 'whole', [callback()])
  with pytest.raises(Killed):
    train(tmp_path / 'cut', [callback(), Killer()])
  again = callback()
  resumed = train(tmp_path / 'cut', [again], resume=True)
  for one, other in zip(whole.trained[6:], resumed.trained, strict=True):
    assert torch.equal(one, other)
  assert torch.equal(whole.evaluated[-1], resumed.evaluated[-1])
  assert torch.equal(flat(whole), flat(resumed))
  assert again.averager.step == STEPS


def test_a_run_resumes_from_another_folder_when_told(tmp_path):
  train(tmp_path / 'a', [AveragingCallback(Ema(0.9))], max_steps=6)
  folder = str(tmp_path / 'a' / 'checkpoint-6')
  with pytest.raises(ValueError, match=r'Missing .*averager\.pt'):
    train(tmp_path / 'b', [AveragingCallback(Ema(0.9))], resume=folder)
  callback = AveragingCallback(Ema(0.9), resume_from=folder)
  train(tmp_path / 'b', [callback], resume=folder)
  assert callback.averager.samples == STEPS
  earlier = AveragingCallback(
    Ema(0.9), resume_from=str(tmp_path / 'a' / 'checkpoint-3')
  )
  with pytest.raises(
    ValueError, match='of step 3, the run resumes from step 6'
  ):
    train(tmp_path / 'b', [earlier], resume=folder)


def test_the_model_holds_the_average_after_training(tmp_path):
  callback = AveragingCallback(Ema(0.5))
  model = train(tmp_path, [callback])
  average = callback.averager.averaged_state_dict()
  assert torch.equal(model.layer.weight, average['layer.weight'])
  raw = train(tmp_path, [AveragingCallback(Ema(0.5), average_at_end=False)])
  assert not torch.equal(model.layer.weight, raw.layer.weight)


@pytest.mark.parametrize(('steps', 'save_steps'), [(STEPS, 3), (9, 6)])
def test_the_best_model_is_an_average(steps, save_steps, tmp_path):
  """Also where the last evaluation has no checkpoint."""
  model = train(
    tmp_path,
    [AveragingCallback(Ema(0.5))],
    load_best_model_at_end=True,
    max_steps=steps,
    save_steps=save_steps,
  )
  assert any(torch.equal(flat(model), seen) for seen in model.evaluated)


def test_after_a_failed_evaluation_training_starts_from_the_raw_weights(
  tmp_path,
):
  callback = AveragingCallback(Ema(0.5))
  trainer = trainer_of(tmp_path, [callback])
  model = trainer.model
  evaluate, model.evaluated = model.evaluated, None
  with pytest.raises(AttributeError):
    trainer.train()
  model.evaluated = evaluate
  assert callback.averager.swapped
  raw = callback.averager.state_dict()['raw']['layer.weight'].clone()
  assert not torch.equal(model.layer.weight, raw)
  trainer.train()
  assert torch.equal(model.trained[3][: raw.numel()], raw.flatten())


def test_accumulated_batches_count_once(tmp_path):
  callback = AveragingCallback(Ema(0.5))
  train(tmp_path, [callback], max_steps=3, gradient_accumulation_steps=2)
  assert callback.averager.step == 3


def test_a_horizon_is_a_fraction_of_the_trainers_steps(tmp_path):
  callback = AveragingCallback(Lawa(horizon=0.5))
  train(tmp_path, [callback])
  assert callback.averager.scheme.size == STEPS // 2


def test_what_the_trainer_cannot_do_is_refused(tmp_path):
  with pytest.raises(ValueError, match="Invalid save_strategy='best'"):
    train(
      tmp_path,
      [AveragingCallback(Ema(0.5))],
      save_strategy='best',
      metric_for_best_model='loss',
    )
  with pytest.raises(ValueError, match='Invalid enable_jit_checkpoint=True'):
    train(tmp_path, [AveragingCallback(Ema(0.5))], enable_jit_checkpoint=True)


class Searches(transformers.TrainerCallback):
  """Marks the run as a trial of a search, as `hyperparameter_search` does."""

  def on_train_begin(self, args, state, control, **kwargs):
    state.is_hyper_param_search = True


class Asks(transformers.TrainerCallback):
  """Asks for an evaluation, or for a checkpoint, after the fifth step."""

  def __init__(self, event):
    self.event = event

  def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == 5:
      setattr(control, self.event, True)


def test_trials_of_a_search_save_no_checkpoints(tmp_path):
  """The Trainer saves them in folders that it tells no callback."""
  callbacks = [Searches(), AveragingCallback(Ema(0.5))]
  with pytest.raises(ValueError, match='Invalid checkpoint in a hyper'):
    train(tmp_path, callbacks)
  model = train(tmp_path, callbacks, save_strategy='no')
  assert torch.equal(model.evaluated[-1], flat(model))


def test_a_callback_that_asks_for_a_checkpoint_in_a_search_is_refused(tmp_path):
  callbacks = [Searches(), Asks('should_save'), AveragingCallback(Ema(0.5))]
  with pytest.raises(ValueError, match='Invalid checkpoint in a hyper'):
    train(tmp_path, callbacks, save_strategy='no')
  assert not list(tmp_path.rglob('averager.pt*'))


@pytest.mark.parametrize(
  ('event', 'message'),
  [
    ('should_evaluate', 'An evaluation has got the raw'),
    ('should_save', 'A checkpoint has got the raw'),
  ],
)
def test_a_callback_that_asks_too_late_is_warned_of(event, message, tmp_path):
  strategies = {'eval_strategy': 'no', 'save_strategy': 'no'}
  averaging = AveragingCallback(Lawa(window=2), every=1)
  model = train(tmp_path / 'a', [Asks(event), averaging], **strategies)
  if event == 'should_evaluate':
    mean = (model.trained[4] + model.trained[5]) / 2
    torch.testing.assert_close(model.evaluated[0], mean)
  with pytest.warns(UserWarning, match=message):
    train(
      tmp_path / 'b', [AveragingCallback(Ema(0.5)), Asks(event)], **strategies
    )


def test_all_of_several_sets_see_the_average(tmp_path):
  averaging = AveragingCallback(Lawa(window=2), every=1)
  trainer = trainer_of(tmp_path, [averaging], save_strategy='no')
  trainer.eval_dataset = {'a': Examples(4), 'b': Examples(2)}
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    trainer.train()
  model = trainer.model
  assert len(model.evaluated) == 8
  for index, step in enumerate((3, 6, 9)):
    mean = (model.trained[step - 1] + model.trained[step]) / 2
    for seen in model.evaluated[2 * index : 2 * index + 2]:
      torch.testing.assert_close(seen, mean)


def test_an_evaluation_at_the_start_sees_the_average(tmp_path):
  callbacks = [AveragingCallback(Ema(0.5))]
  first = train(tmp_path, callbacks, max_steps=6)
  second = train(
    tmp_path,
    [AveragingCallback(Ema(0.5))],
    resume=str(tmp_path / 'checkpoint-6'),
    eval_on_start=True,
  )
  torch.testing.assert_close(second.evaluated[0], flat(first))


def test_accelerate_saves_and_restores_the_averager(tmp_path):
  def setup():
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(
      cpu=True, gradient_accumulation_steps=2
    )
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model, optimizer = accelerator.prepare(model, optimizer)
    averager = Averager(model, Ema(0.8))
    accelerator.register_for_checkpointing(averager)
    return accelerator, model, optimizer, averager

  def run(parts, begin, end):
    accelerator, model, optimizer, averager = parts
    for index in range(begin, end):
      generator = torch.Generator().manual_seed(index)
      inputs = torch.randn(4, 3, generator=generator)
      with accelerator.accumulate(model):
        accelerator.backward(model(inputs).square().mean())
        optimizer.step()
        optimizer.zero_grad()
      if accelerator.sync_gradients:
        averager.update()

  whole = setup()
  run(whole, 0, 12)
  first = setup()
  run(first, 0, 6)
  first[0].save_state(str(tmp_path / 'state'))
  second = setup()
  second[0].load_state(str(tmp_path / 'state'))
  run(second, 6, 12)
  assert second[3].step == 6
  with whole[3].evaluating(), second[3].evaluating():
    assert torch.equal(whole[1].weight, second[1].weight)
  assert torch.equal(whole[1].weight, second[1].weight)


@pytest.mark.parametrize('prepared', [True, False])
def test_nadamw_inside_accelerate_leaves_a_bad_step_out(prepared):
  torch.manual_seed(0)
  model = torch.nn.Linear(3, 1)
  optimizer = NadamW(model.parameters(), lr=0.05, betas=(0.0, 0.9))
  if prepared:
    model, optimizer = accelerate.Accelerator(cpu=True).prepare(
      model, optimizer
    )
  averager = train_with_a_bad_step(model, optimizer)
  assert (averager.samples, averager.skipped) == (5, 1)


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
