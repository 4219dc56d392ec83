"""The contract of every folder under submissions/, found by listing it."""

import importlib
import inspect
import json
import pathlib
import sys
import types

import pytest
import torch
from jax_support import HAS_JAX, REASON
from torch import nn

from weightavg import spec
from weightavg.optimizers import published_batch_size
from weightavg.pytorch import profiling
from weightavg.workloads import batch_size_of, workload_name

ROOT = pathlib.Path(__file__).parents[2]
ALL = sorted(
  p.parent.name for p in (ROOT / 'submissions').glob('*/submission.py')
)
# Those in JAX keep the same interface; test_jax_submissions.py runs them.
FOLDERS = [folder for folder in ALL if not folder.endswith('_jax')]
# Evaluated on the weights that were trained.
BARE = {'nadamw', 'shampoo'}
AUTO = {'nadamw_auto', 'shampoo_auto'}
# Trained at an average.
PRIMAL = {'nadamw_primal', 'shampoo_primal'}
# Without a budget there is nothing to plan on the clock.
UNPLANNED = {'nadamw_schedule_free'}
_COMMON = [
  'workload',
  'current_param_container',
  'current_params_types',
  'model_state',
  'hyperparameters',
]
ARGUMENTS = {
  'init_optimizer_state': [
    'workload',
    'model_params',
    'model_state',
    'hyperparameters',
    'rng',
  ],
  'update_params': [
    *_COMMON,
    'batch',
    'loss_type',
    'optimizer_state',
    'eval_results',
    'global_step',
    'rng',
    'train_state',
  ],
  'prepare_for_eval': [
    *_COMMON,
    'loss_type',
    'optimizer_state',
    'eval_results',
    'global_step',
    'rng',
  ],
  'data_selection': [
    'workload',
    'input_queue',
    'optimizer_state',
    'current_param_container',
    'model_state',
    'hyperparameters',
    'global_step',
    'rng',
  ],
  'get_batch_size': ['workload_name'],
}


class Workload:
  """Two-layer regression; just what a submission touches."""

  step_hint = 500
  max_allowed_runtime_sec = 3600
  num_train_examples = 160
  name = 'mnist'  # batch size 16: ten steps per epoch
  metrics_logger = None

  def __init__(self):
    self.calls = []
    self.smoothing = None

  def model_fn(
    self,
    params,
    augmented_and_preprocessed_input_batch,
    model_state,
    mode,
    rng,
    update_batch_norm,
    dropout_rate,
  ):
    self.calls.append((mode, update_batch_norm, dropout_rate))
    logits = params(augmented_and_preprocessed_input_batch['inputs'])
    return logits, (model_state or 0) + 1

  def loss_fn(
    self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0
  ):
    self.smoothing = label_smoothing
    target = label_batch[0] if isinstance(label_batch, tuple) else label_batch
    per_example = (logits_batch - target).pow(2).sum(-1)
    if mask_batch is not None:
      per_example = per_example * mask_batch
    count = len(target) if mask_batch is None else mask_batch.sum()
    return {
      'summed': per_example.sum(),
      'n_valid_examples': count,
      'per_example': per_example,
    }


def load(folder):
  if folder.endswith('_jax') and not HAS_JAX:
    pytest.skip(REASON)
  return importlib.import_module(f'submissions.{folder}.submission')


def point(folder, **changes):
  points = json.loads(
    (ROOT / 'tuning_search_spaces' / f'{folder}.json').read_text()
  )
  values = points[0] | changes
  return types.SimpleNamespace(**values, _asdict=lambda: dict(values))


class Host:
  """Calls a submission as the benchmark does."""

  def __init__(self, folder, hyperparameters=None, **changes):
    self.submission = load(folder)
    self.workload = Workload()
    torch.manual_seed(0)
    self.model = self.make_model()
    self.model_state = None
    self.hyperparameters = hyperparameters or point(folder, **changes)
    self.state = self.submission.init_optimizer_state(
      self.workload, self.model, None, self.hyperparameters, (0, 1)
    )
    self.step = 0

  def make_model(self):
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))

  def batches(self):
    while True:
      generator = torch.Generator().manual_seed(self.step)
      yield {
        'inputs': torch.randn(16, 4, generator=generator),
        'targets': torch.randn(16, 2, generator=generator),
      }

  def update(self, batch=None, **kwargs):
    if batch is None:
      batch = self.submission.data_selection(
        self.workload,
        self.batches(),
        self.state,
        self.model,
        None,
        self.hyperparameters,
        self.step,
        (0, 1),
      )
    self.state, self.model, self.model_state = self.submission.update_params(
      workload=self.workload,
      current_param_container=self.model,
      current_params_types=None,
      model_state=self.model_state,
      hyperparameters=self.hyperparameters,
      batch=batch,
      loss_type=spec.LossType.MEAN_SQUARED_ERROR,
      optimizer_state=self.state,
      eval_results=[],
      global_step=self.step,
      rng=(0, 1),
      **kwargs,
    )
    self.step += 1

  def prepare_for_eval(self):
    self.state, self.model, self.model_state = self.submission.prepare_for_eval(
      workload=self.workload,
      current_param_container=self.model,
      current_params_types=None,
      model_state=self.model_state,
      hyperparameters=self.hyperparameters,
      loss_type=spec.LossType.MEAN_SQUARED_ERROR,
      optimizer_state=self.state,
      eval_results=[],
      global_step=self.step,
      rng=(0, 1),
    )

  def weights(self):
    return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def test_the_folder_has_submissions():
  assert BARE & set(FOLDERS)
  assert len(FOLDERS) >= 4


@pytest.mark.parametrize('folder', ALL)
@pytest.mark.parametrize('function', sorted(ARGUMENTS))
def test_functions_have_the_benchmarks_arguments(folder, function):
  submission = load(folder)
  own = {'prepare_for_checkpoint'} if 'auto' in folder else set()
  assert set(submission.__all__) == set(ARGUMENTS) | own
  for name in own:
    found = inspect.signature(getattr(submission, name)).parameters
    assert list(found) == ARGUMENTS['prepare_for_eval']
  parameters = inspect.signature(getattr(submission, function)).parameters
  assert list(parameters) == ARGUMENTS[function]


@pytest.mark.parametrize('folder', ALL)
def test_each_folder_can_be_imported_and_has_a_search_space(folder):
  assert (ROOT / 'submissions' / folder / '__init__.py').exists()
  assert (ROOT / 'tuning_search_spaces' / f'{folder}.json').exists()


@pytest.mark.parametrize('folder', ALL)
def test_unknown_workload_raises_value_error(folder):
  assert load(folder).get_batch_size('imagenet_resnet') == 1024
  with pytest.raises(ValueError, match="Unknown workload 'imagenet_vit_map'"):
    load(folder).get_batch_size('imagenet_vit_map')


@pytest.mark.parametrize('folder', FOLDERS)
def test_prepare_for_eval_changes_the_weights_unless_bare(folder):
  # auto may find the raw weights best; with one candidate it cannot.
  only = {'averaging_candidates': 'ema 0.1'} if folder in AUTO else {}
  host = Host(folder, **only)
  for _ in range(5):
    host.update()
  before = host.weights()
  host.prepare_for_eval()
  assert torch.equal(host.weights(), before) == (folder in BARE)


@pytest.mark.parametrize('folder', ['nadamw_ema', 'shampoo_ema'])
def test_an_optimizers_gathering_is_not_billed_as_a_swap(folder):
  host, recorder = Host(folder), profiling.Recorder()
  host.update()
  with profiling.recording(recorder):
    host.prepare_for_eval()
  gathering = {'Gather optimizer state'} if folder == 'shampoo_ema' else set()
  assert set(recorder.sections) == {'Swap'} | gathering


@pytest.mark.parametrize('folder', FOLDERS)
def test_training_with_evaluations_equals_training_without(folder):
  with_evaluations, without = Host(folder), Host(folder)
  for step in range(8):
    with_evaluations.update()
    without.update()
    if step % 2:
      with_evaluations.prepare_for_eval()
      with_evaluations.prepare_for_eval()
  without.prepare_for_eval()
  assert torch.equal(with_evaluations.weights(), without.weights())


@pytest.mark.parametrize('folder', FOLDERS)
def test_an_evaluation_may_average_the_model_over_the_ranks(folder):
  """Raised an error on AlgoPerf's speech workloads on more than one GPU."""
  averaging, without = Host(folder), Host(folder)
  for _ in range(4):
    for host in (averaging, without):
      host.update()
      host.prepare_for_eval()
    shown = averaging.weights()
    # As the benchmark does: the sum in place of each rank's weights, then the
    # mean by a load. The mean of equal numbers is the number.
    state = averaging.model.state_dict()
    for name, tensor in state.items():
      tensor.mul_(2)
      state[name] = tensor / 2
    averaging.model.load_state_dict(state)
    assert torch.equal(averaging.weights(), shown)
  assert torch.equal(averaging.weights(), without.weights())


@pytest.mark.parametrize('folder', FOLDERS)
def test_every_value_of_the_state_is_checkpointable(folder, tmp_path):
  host = Host(folder)
  keys = set(host.state)
  for _ in range(3):
    host.update()
  host.prepare_for_eval()
  assert set(host.state) == keys
  saved = {k: v.state_dict() for k, v in host.state.items()}
  torch.save(saved, tmp_path / 'state')
  loaded = torch.load(tmp_path / 'state', weights_only=True)
  fresh = Host(folder)
  fresh.model.load_state_dict(host.model.state_dict())
  for key, value in fresh.state.items():
    value.load_state_dict(loaded[key])
  fresh.step, fresh.model_state = host.step, host.model_state
  for h in (host, fresh):
    h.update(train_state={})
    h.prepare_for_eval()
  assert torch.equal(fresh.weights(), host.weights())
  assert fresh.model_state == host.model_state == 4


@pytest.mark.parametrize('folder', FOLDERS)
def test_self_tuning_needs_no_hyperparameters(folder):
  host = Host(folder)
  state = host.submission.init_optimizer_state(
    host.workload, host.model, None, None, (0, 1)
  )
  assert ('clock' in state) == (folder not in UNPLANNED)
  if folder in UNPLANNED:
    return
  plan = state['clock'].plan
  # Half as much time again as under external tuning.
  assert (plan.longest, plan.seconds) == (500, 5400.0)


def test_schedule_free_trains_alike_in_any_budget(monkeypatch):
  results = []
  for step_hint in (20, 500, 50_000):
    monkeypatch.setattr(Workload, 'step_hint', step_hint)
    host = Host('nadamw_schedule_free', warmup_steps=5)
    for _ in range(30):
      host.update()
    host.prepare_for_eval()
    results.append(host.weights())
  assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize('folder', sorted(PRIMAL))
def test_training_takes_part_at_the_average(folder):
  host, evaluated = Host(folder), Host(folder, averaging_interpolation=0.0)
  for h in (host, evaluated):
    for _ in range(5):
      h.update()
  assert not torch.equal(host.weights(), evaluated.weights())
  # NadamW and Shampoo keep no momentum.
  optimizer = host.state['optimizer']
  assert optimizer.param_groups[0]['betas'][0] == 0.0


class NormalisedHost(Host):
  def make_model(self):
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.mark.parametrize('folder', sorted(PRIMAL | UNPLANNED))
def test_running_statistics_are_refreshed_by_the_training_batch(folder):
  host = NormalisedHost(
    folder,
    averaging_batch_norm='refreshed',
    averaging_refresh_every=3,
    dropout_rate=0.25,
  )
  recorder = profiling.Recorder()
  with profiling.recording(recorder):
    for _ in range(7):
      host.update()
  train = (spec.ForwardPassMode.TRAIN, True, 0.25)
  assert host.workload.calls == [train] * 9
  assert 'Running statistics' in recorder.sections
  host.prepare_for_eval()
  evaluated = host.model[1].running_mean.clone()
  host.update()
  assert not torch.equal(host.model[1].running_mean, evaluated)


def test_a_state_of_another_budget_is_refused():
  state = Host('nadamw').state['run'].state_dict()
  with pytest.raises(ValueError, match='budget=500, this submission has'):
    Host('nadamw', step_hint_factor=0.5).state['run'].load_state_dict(state)


@pytest.mark.parametrize(
  ('key', 'value'),
  [('learning_rate', 0.5), ('warmup_factor', 0.5), ('label_smoothing', 0.5)],
)
@pytest.mark.parametrize('folder', ['nadamw', 'shampoo'])
def test_a_state_of_another_point_is_refused(folder, key, value):
  state = Host(folder).state['run'].state_dict()
  with pytest.raises(ValueError, match=f'{key}=0.5'):
    Host(folder, **{key: value}).state['run'].load_state_dict(state)
  Host(folder).state['run'].load_state_dict(state)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('grafting', 'rmsprop'),
    ('use_nadam', False),
    ('precondition_frequency', 7),
    ('schedule', 'constant'),
  ],
)
def test_a_state_of_another_choice_is_refused(key, value):
  state = Host('shampoo').state['run'].state_dict()
  other = Host('shampoo', **{key: value}).state['run']
  with pytest.raises(ValueError, match=f'this submission has {key}={value!r}'):
    other.load_state_dict(state)
  del state[key]  # as in states of earlier versions
  other.load_state_dict(state)


@pytest.mark.parametrize(
  ('key', 'value'),
  [('skip_nonfinite_gradients', True), ('num_trainers_per_group', 1)],
)
def test_how_the_work_is_done_may_change(key, value):
  state = Host('shampoo').state['run'].state_dict()
  Host('shampoo', **{key: value}).state['run'].load_state_dict(state)


def test_the_model_is_called_for_training_with_the_points_dropout():
  host = Host('nadamw', dropout_rate=0.25, label_smoothing=0.125)
  host.model.eval()
  host.update()
  assert host.workload.smoothing == 0.125
  assert host.workload.calls == [(spec.ForwardPassMode.TRAIN, True, 0.25)]
  assert host.model.training


def test_gradients_are_clipped():
  host = Host('nadamw', grad_clip=1e-3)
  host.update()
  norms = [p.grad.norm() for p in host.model.parameters()]
  assert torch.stack(norms).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_the_loss_is_a_mean_over_valid_examples():
  host, cut = Host('nadamw'), Host('nadamw')
  batch = next(host.batches())
  mask = torch.tensor([1.0] * 4 + [0.0] * 12)
  host.update(batch | {'weights': mask})
  cut.update({k: v[:4] for k, v in batch.items()})
  for a, b in zip(host.model.parameters(), cut.model.parameters(), strict=True):
    # Sums over 16 and over 4 rows: rounding only.
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


def test_a_batch_without_valid_examples_gives_zero_gradients():
  host = Host('nadamw')
  host.update(next(host.batches()) | {'weights': torch.zeros(16)})
  assert all(not p.grad.any() for p in host.model.parameters())


def test_targets_may_be_tuples():
  host = Host('nadamw_ema')
  batch = next(host.batches())
  host.update(batch | {'targets': (batch['targets'], torch.zeros(16))})
  assert host.step == 1


def test_loss_and_gradient_norm_are_logged_as_the_baselines_do():
  rows = []

  class Logger:
    def append_scalar_metrics(self, metrics, global_step):
      rows.append((global_step, metrics))

  host = Host('nadamw')
  host.workload.metrics_logger = Logger()
  for step in (0, 100, 101, 499, 500, 1000):
    host.step = step
    host.update()
  logged = [step for step, _ in rows]
  assert logged == [0, 100, 500, 1000]
  assert sorted(rows[0][1]) == ['grad_norm', 'loss']
  # The loss is a mean over the 16 examples, of the weights before the step.
  fresh = Host('nadamw')
  batch = next(fresh.batches())
  per_example = (fresh.model(batch['inputs']) - batch['targets']).pow(2).sum(-1)
  assert rows[0][1]['loss'] == pytest.approx(
    per_example.mean().item(), rel=1e-5
  )


def test_the_point_reaches_optimizer_and_schedule():
  host = Host('nadamw', schedule_factor=0.5, warmup_factor=0.0)
  group = host.state['optimizer'].param_groups[0]
  values = host.hyperparameters
  assert group['betas'] == (1 - values.one_minus_beta1, values.beta2)
  assert group['weight_decay'] == values.weight_decay
  for _ in range(125):
    host.update()
  # Half of half of 500 steps: the cosine is at its middle.
  assert group['lr'] == pytest.approx(values.learning_rate / 2)


def test_samples_are_taken_after_the_step():
  host = Host('nadamw_lawa')
  seen = []
  for _ in range(4):
    host.update()
    seen.append(host.weights())
  host.prepare_for_eval()
  # Four float32 additions.
  torch.testing.assert_close(
    host.weights(), torch.stack(seen).mean(0), rtol=1e-6, atol=1e-7
  )


def test_a_state_of_another_optimizer_is_refused():
  state = Host('nadamw').state['run'].state_dict()
  with pytest.raises(ValueError, match="optimizer='nadamw', this submission"):
    Host('shampoo').state['run'].load_state_dict(state)


@pytest.mark.parametrize('folder', ALL)
def test_speech_batch_sizes_are_the_optimizers_own(folder):
  sizes = (200, 224) if folder.startswith('shampoo') else (256, 256)
  names = ('librispeech_conformer', 'librispeech_deepspeech')
  assert tuple(map(load(folder).get_batch_size, names)) == sizes


def test_kaddours_preset_counts_epochs_by_the_workloads_batch_size():
  values = point('nadamw_lawa')._asdict()
  del values['averaging_horizon'], values['averaging_every']
  values['averaging_preset'] = 'kaddour2022'
  host = Host(
    'nadamw_lawa',
    types.SimpleNamespace(**values, _asdict=lambda: dict(values)),
  )
  assert host.state['averager'].sampling.every == 10


def test_a_variant_has_the_batch_size_of_its_base(monkeypatch):
  workload = types.SimpleNamespace(name='fastmri_tanh')
  with pytest.raises(ValueError, match="Unknown workload 'fastmri_tanh'"):
    batch_size_of(workload, published_batch_size)
  registry = types.ModuleType('algoperf.workloads.workloads')
  registry.get_base_workload_name = lambda name: name.partition('_')[0]
  monkeypatch.setitem(sys.modules, registry.__name__, registry)
  assert batch_size_of(workload, published_batch_size) == 32
  workload.name = 'fastmri'
  assert batch_size_of(workload, published_batch_size) == 32


def test_a_workload_without_a_name_cannot_tell_its_epochs():
  with pytest.raises(ValueError, match='Unknown workload class object'):
    workload_name(object())


def test_batch_sizes_are_the_baselines():
  assert published_batch_size('criteo1tb') == 262_144
  assert published_batch_size('imagenet_resnet_gelu') == 512


def test_a_workload_that_is_not_published_may_have_a_batch_size_of_its_own():
  workload = types.SimpleNamespace(name='of_ones_own', batch_size=24)
  assert batch_size_of(workload, published_batch_size) == 24
  workload.name = 'fastmri'
  assert batch_size_of(workload, published_batch_size) == 32
