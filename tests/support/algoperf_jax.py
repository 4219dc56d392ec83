"""Runs of the submissions in JAX on the real benchmark's workloads."""

import contextlib
import os
import warnings

import algoperf_batches
import algoperf_support as support
import numpy as np

os.environ.setdefault('JAX_PLATFORMS', 'cpu')


def make_workload(name, step_hint=500):
  """The benchmark's JAX class of a workload, with a short budget."""
  registry = support.quiet_import('algoperf.workloads.workloads')
  entry = registry.WORKLOADS[name]
  path = f'{registry.BASE_WORKLOADS_DIR}{entry["workload_path"]}_jax'
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    base = registry.import_workload(
      f'{path}/workload.py', entry['workload_class_name'], return_class=True
    )

  class Short(base):
    @property
    def step_hint(self):
      return step_hint

  for attribute, value in support.MODEL_CHANGES.get(name, {}).items():
    assert hasattr(base, attribute)
    setattr(Short, attribute, value)
  Short.__name__ = base.__name__
  return Short()


def make_batch(name, seed=0):
  """A random batch as JAX's pipelines give it: arrays, channels last."""
  registry = support.quiet_import('algoperf.workloads.workloads')
  base = registry.get_base_workload_name(name)
  if base == 'ogbg':
    return algoperf_batches.graphs(np.random.default_rng(seed))
  batch = algoperf_batches.make_batch(name, seed)
  is_image = base in ('mnist', 'cifar', 'imagenet_resnet', 'imagenet_vit')

  def convert(key, value):
    if isinstance(value, tuple):
      return tuple(convert(key, each) for each in value)
    value = value.numpy()
    if key == 'inputs' and is_image:
      value = np.moveaxis(value, 1, -1)
    if value.dtype in (np.int64, np.bool_):
      value = value.astype(np.float32 if key == 'weights' else np.int32)
    return value

  return {k: convert(k, v) for k, v in batch.items() if v is not None}


@contextlib.contextmanager
def restorable():
  """Mend the host's restore: results of evaluations are lost in 1.0.

  The host restores into a target whose `eval_results` is None, and flax gives
  None back; the next line reads its items. What could be sent upstream is to
  read this one entry without a target.
  """
  module = support.quiet_import('algoperf.checkpoint_utils')
  flax_checkpoints = module.flax_checkpoints
  restore = flax_checkpoints.restore_checkpoint

  def mended(directory, target=None, **kwargs):
    restored = restore(directory, target=target, **kwargs)
    if isinstance(restored, dict) and restored.get('eval_results') is None:
      whole = restore(directory, target=None)
      results = whole['eval_results'] if whole else ()
      pairs = results.values() if isinstance(results, dict) else results
      # Pairs of a step and its results, which the host reads from a dict.
      restored['eval_results'] = {
        str(number): pair for number, pair in enumerate(pairs)
      }
    return restored

  flax_checkpoints.restore_checkpoint = mended
  try:
    yield
  finally:
    flax_checkpoints.restore_checkpoint = restore


class Run:
  """One run of a submission on a workload, step by step, as the runner's."""

  def __init__(self, name, workload, batches, **changes):
    import jax

    self.submission = support.load_submission(name)
    self.workload = make_workload(workload)
    self.point = support.hyperparameters(name, **changes)
    self.batches = batches
    self.global_step = 0
    self._key = jax.random.PRNGKey(0)
    self.params, self.model_state = self.workload.init_model_fn(self._key)
    self.state = self.submission.init_optimizer_state(
      self.workload, self.params, self.model_state, self.point, self._key
    )

  def _shared_arguments(self):
    import jax

    return {
      'workload': self.workload,
      'current_param_container': self.params,
      'model_state': self.model_state,
      'hyperparameters': self.point,
      'optimizer_state': self.state,
      'global_step': self.global_step,
      'rng': jax.random.fold_in(self._key, self.global_step),
    }

  def _host_arguments(self):
    return {
      'current_params_types': self.workload.model_params_types,
      'loss_type': self.workload.loss_type,
      'eval_results': [],
      **self._shared_arguments(),
    }

  def step(self):
    # One to train on, and one that a submission may set aside.
    number = len(self.batches)
    queue = [self.batches[(self.global_step + i) % number] for i in (0, 1)]
    batch = self.submission.data_selection(
      input_queue=iter(queue), **self._shared_arguments()
    )
    self.state, self.params, self.model_state = self.submission.update_params(
      batch=batch, **self._host_arguments()
    )
    self.global_step += 1

  def prepare_for_eval(self):
    shown = self.submission.prepare_for_eval(**self._host_arguments())
    self.state, self.params, self.model_state = shown

  def evaluate(self):
    """Outputs of the model function on the first batch, in evaluation mode."""
    spec = support.quiet_import('algoperf.spec')
    outputs, _ = self.workload.model_fn(
      self.params,
      self.batches[0],
      self.model_state,
      spec.ForwardPassMode.EVAL,
      self._key,
      update_batch_norm=False,
    )
    return outputs

  def save(self, directory):
    support.save_checkpoint(self, 'jax', self.params, directory)

  def restore(self, directory):
    """Restore as the runner does, with its fault mended."""
    checkpoints = support.quiet_import('algoperf.checkpoint_utils')
    with restorable():
      restored = checkpoints.maybe_restore_checkpoint(
        'jax',
        self.state,
        self.params,
        self.model_state,
        {'accumulated_submission_time': 0.0},
        [],
        0,
        0,
        checkpoint_dir=str(directory),
      )
    self.state, self.params, self.model_state = restored[:3]
    self.global_step = int(restored[5])
