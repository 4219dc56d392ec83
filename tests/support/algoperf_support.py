"""Workloads, batches and runs that the tests of the real benchmark share.

Importing this module imports neither algoperf nor TensorFlow; calls do.
"""

import hashlib
import importlib
import importlib.util
import json
import os
import pathlib
import warnings

import numpy as np
import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
_ALL = sorted(
  path.parent.name for path in ROOT.glob('submissions/*/submission.py')
)
SUBMISSIONS = tuple(name for name in _ALL if not name.endswith('_jax'))
JAX_SUBMISSIONS = tuple(name for name in _ALL if name.endswith('_jax'))
WORKLOADS = (
  'mnist',
  'cifar',
  'criteo1tb_test',
  'fastmri',
  'finewebedu_lm',
  'imagenet_resnet',
  'imagenet_vit',
  'librispeech_conformer',
  'librispeech_deepspeech',
  'ogbg',
  'wmt',
)

_NEEDED = ('algoperf', 'submission_runner', 'tensorflow', 'jax')
_MISSING = [n for n in _NEEDED if importlib.util.find_spec(n) is None]
if _MISSING and os.environ.get('WEIGHTAVG_REQUIRE_ALGOPERF') == '1':
  raise ImportError(
    'WEIGHTAVG_REQUIRE_ALGOPERF=1, but AlgoPerf is not installed '
    f"(missing: {', '.join(_MISSING)}). Run: pip install -e '.[algoperf]'"
  )

# The benchmark's own dependencies warn; only our packages must not.
MARKS = [
  pytest.mark.algoperf,
  pytest.mark.skipif(
    bool(_MISSING),
    reason=f'AlgoPerf is not installed (missing: {", ".join(_MISSING)})',
  ),
  pytest.mark.filterwarnings('ignore'),
  pytest.mark.filterwarnings('error:::weightavg'),
  pytest.mark.filterwarnings('error:::submissions'),
]


def quiet_import(name):
  """Import what warns at import time, TensorFlow's logs off."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return importlib.import_module(name)


def workload_class(name):
  """The benchmark's PyTorch class of a workload, found as its runner does."""
  registry = quiet_import('algoperf.workloads.workloads')
  entry = registry.WORKLOADS[name]
  path = f'{registry.BASE_WORKLOADS_DIR}{entry["workload_path"]}_pytorch'
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return registry.import_workload(
      f'{path}/workload.py', entry['workload_class_name'], return_class=True
    )


# Attributes in which a workload's model here differs from the benchmark's. The
# language model keeps its width, vocabulary and tied embedding; with one of its
# twelve layers it has 68 million parameters instead of 253 million.
MODEL_CHANGES = {'finewebedu_lm': {'_n_layers': 1}}


def make_workload(name, step_hint=500):
  """A workload with a short budget: every step is then a sample.

  With 500 steps the default cadence of 0.2 % is one step, and warm-ups last 10
  to 50 steps, so that the very first updates are not zero.
  """
  base = workload_class(name)

  class Short(base):
    @property
    def step_hint(self):
      return step_hint

  for attribute, value in MODEL_CHANGES.get(name, {}).items():
    assert hasattr(base, attribute)
    setattr(Short, attribute, value)

  Short.__name__ = base.__name__
  return Short()


def load_submission(name):
  """Import a submission as the runner does: by a path turned into a module."""
  registry = quiet_import('algoperf.workloads.workloads')
  path = f'submissions/{name}/submission.py'
  return importlib.import_module(registry.convert_filepath_to_module(path))


def search_space(name):
  return ROOT / 'tuning_search_spaces' / f'{name}.json'


def hyperparameters(name, **changes):
  """The first point of a search space, as the namedtuple the runner makes."""
  halton = quiet_import('algoperf.halton')
  point = json.loads(search_space(name).read_text())[0] | changes
  return halton.generate_search([point], 1)[0]


# Gradients are taken between the average and the optimizer's iterate.
TRAINS_AT_AVERAGE = ('primal', 'schedule_free')


def averages_by(submission):
  """The average in a submission's name; 'none' for the bare optimizers."""
  optimizer, _, average = submission.partition('_')
  assert optimizer in ('nadamw', 'shampoo')
  return average or 'none'


def shown_by(submission, state):
  """Return the scheme that evaluation sees now, and its horizon or power."""
  scheme = averages_by(submission)
  if scheme == 'auto':
    averager = state['averager']
    if averager.choice.selected < 0:
      return 'none', None
    name = averager.choice.names[averager.choice.selected]
    kind, _, argument = name.partition(' ')
    return ('none', None) if kind == 'raw' else (kind, float(argument))
  # The defaults.
  arguments = {'lawa': 0.01, 'ema': 0.01, 'polynomial': 4.0, 'primal': 0.03}
  return scheme, arguments.get(scheme)


class Run:
  """One run of a submission on a workload, step by step, as the runner's.

  `model` is what the runner holds as `model_params`, `state` the submission's
  optimizer state. Each step sees a batch of its own and seeds torch's global
  generator, which the benchmark neither saves nor restores.
  """

  def __init__(
    self, submission, workload, point, batches, *, seed=0, wrap=None
  ):
    self.submission = submission
    self.workload = workload
    self.point = point
    self.batches = batches
    self.global_step = 0
    rng = np.array([seed, 1])
    self.model, self.model_state = workload.init_model_fn(rng)
    if wrap is not None:
      self.model = wrap(self.model)
    self.state = submission.init_optimizer_state(
      workload, self.model, self.model_state, point, rng
    )

  def _shared_arguments(self):
    return {
      'workload': self.workload,
      'current_param_container': self.model,
      'current_params_types': self.workload.model_params_types,
      'model_state': self.model_state,
      'hyperparameters': self.point,
      'loss_type': self.workload.loss_type,
      'optimizer_state': self.state,
      'eval_results': [],
      'global_step': self.global_step,
      'rng': np.array([self.global_step, 2]),
    }

  def step(self, **extra):
    # One to train on, and one that a submission may set aside.
    first, second = (
      self.batches[(self.global_step + i) % len(self.batches)] for i in (0, 1)
    )
    batch = self.submission.data_selection(
      self.workload,
      iter([first, second]),
      self.state,
      self.model,
      self.model_state,
      self.point,
      self.global_step,
      np.array([self.global_step, 3]),
    )
    torch.manual_seed(100 + self.global_step)
    self.state, self.model, self.model_state = self.submission.update_params(
      batch=batch, **self._shared_arguments(), **extra
    )
    self.global_step += 1

  def prepare_for_eval(self):
    self.state, self.model, self.model_state = self.submission.prepare_for_eval(
      **self._shared_arguments()
    )

  def evaluate(self):
    """Outputs of the model function on the first batch, in evaluation mode."""
    spec = quiet_import('algoperf.spec')
    outputs, _ = self.workload.model_fn(
      self.model,
      self.batches[0],
      self.model_state,
      spec.ForwardPassMode.EVAL,
      np.array([0, 4]),
      update_batch_norm=False,
    )
    return outputs

  def save(self, directory):
    save_checkpoint(self, 'pytorch', self.model, directory)

  def restore(self, directory):
    """Restore as the runner does; return the number of preemptions so far."""
    checkpoints = quiet_import('algoperf.checkpoint_utils')
    (
      self.state,
      self.model,
      self.model_state,
      _,
      _,
      self.global_step,
      preemptions,
    ) = checkpoints.maybe_restore_checkpoint(
      'pytorch',
      self.state,
      self.model,
      self.model_state,
      {},
      [],
      0,
      0,
      checkpoint_dir=str(directory),
    )
    return preemptions


def save_checkpoint(run, framework, params, directory):
  """Save a run of a submission as the benchmark's runner does."""
  checkpoints = quiet_import('algoperf.checkpoint_utils')
  checkpoints.save_checkpoint(
    framework=framework,
    optimizer_state=run.state,
    model_params=params,
    model_state=run.model_state,
    train_state={'accumulated_submission_time': 1.0},
    eval_results=[(run.global_step, {'validation/loss': 1.0})],
    global_step=run.global_step,
    preemption_count=0,
    checkpoint_dir=str(directory),
    save_intermediate_checkpoints=True,
  )


def tensors_of(tree, name=''):
  """All tensors in nested dicts, lists and tuples, with their paths."""
  if torch.is_tensor(tree):
    yield name, tree
  elif isinstance(tree, dict):
    for key, value in tree.items():
      yield from tensors_of(value, f'{name}.{key}')
  elif isinstance(tree, (list, tuple)):
    for index, value in enumerate(tree):
      yield from tensors_of(value, f'{name}.{index}')


def clean(name):
  """A parameter's name without the prefixes of DDP and torch.compile."""
  return name.replace('_orig_mod.', '').replace('module.', '')


def fingerprint(model):
  """Hashes of a model's parameters and buffers: bit-exact, and small."""
  return {
    clean(name): _hash(tensor) for name, tensor in model.state_dict().items()
  }


def state_fingerprint(state):
  """Hashes of everything that a checkpoint of the optimizer state holds."""
  return {
    path: _hash(tensor)
    for key, value in state.items()
    for path, tensor in tensors_of(value.state_dict(), key)
  }


def _hash(tensor):
  tensor = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
  return hashlib.blake2b(tensor.numpy(), digest_size=8).hexdigest()
