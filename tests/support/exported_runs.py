"""Steps of an exported submission in a process that sees nothing else."""

import json
import os
import pathlib
import subprocess
import sys

from lab.export import exporter

ROOT = pathlib.Path(__file__).parents[2]
NAMES = exporter.submissions()
# Short, so that a process trains in three steps what a test checks.
POINT = {'learning_rate': 0.01, 'warmup_factor': 0.0}
# Runs in a process of its own: `python -I` sees neither the working directory
# nor PYTHONPATH, and what this repository installs is made unimportable.
ALONE = """
import importlib.util, json, sys

class Blocked:
  def find_spec(self, name, path=None, target=None):
    top = name.partition('.')[0]
    if top in ('weightavg', 'lab', 'submissions', 'benchmarks', 'algoperf'):
      raise ModuleNotFoundError(f'{name} is blocked', name=name)

# The path itself is searched for what is installed; algoperf may be.
find_spec = importlib.util.find_spec
importlib.util.find_spec = (
  lambda name, *rest: None if name == 'algoperf' else find_spec(name, *rest))
sys.meta_path.insert(0, Blocked())
folder, name, point = sys.argv[1:]
sys.path.insert(0, folder)
"""
STEPS = """
import collections, types
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
workload = types.SimpleNamespace(
  step_hint=500,
  max_allowed_runtime_sec=3600,
  num_train_examples=64,
  metrics_logger=None,
  model_params_types=None,
  loss_type=None,
  model_fn=lambda params, augmented_and_preprocessed_input_batch, **_: (
    params(augmented_and_preprocessed_input_batch['inputs']), None),
  loss_fn=lambda label_batch, logits_batch, **_: {
    'summed': (logits_batch - label_batch).square().sum(),
    'n_valid_examples': torch.tensor(len(label_batch)),
    'per_example': (logits_batch - label_batch).square().sum(1),
  },
)
point = json.loads(point) if isinstance(point, str) else point
if point is not None:
  point = collections.namedtuple('Hyperparameters', point)(**point)

def queue():
  while True:
    yield {'inputs': torch.randn(8, 3), 'targets': torch.randn(8, 2)}

batches = queue()
state = submission.init_optimizer_state(workload, model, None, point, None)
known = dict(
  workload=workload, current_params_types=None, model_state=None,
  hyperparameters=point, loss_type=None, eval_results=[], rng=None)
for step in range(3):
  batch = submission.data_selection(
    workload, batches, state, model, None, point, step, None)
  state, model, _ = submission.update_params(
    current_param_container=model, optimizer_state=state, batch=batch,
    global_step=step, **known)
raw = torch.cat([p.detach().flatten() for p in model.parameters()])
state, model, _ = submission.prepare_for_eval(
  current_param_container=model, optimizer_state=state, global_step=3, **known)
shown = torch.cat([p.detach().flatten() for p in model.parameters()])
result = {
  'raw': raw.tolist(),
  'shown': shown.tolist(),
  'batch_size': submission.get_batch_size('mnist'),
}
"""
# The same in JAX, where weights are a tree that the functions return.
JAX_STEPS = """
import collections, types
import numpy as np
import jax

def model_fn(params, batch, model_state, mode, rng, **_):
  hidden = batch['inputs'] @ params['hidden']
  return hidden @ params['out'], None

def loss_fn(label_batch, logits_batch, **_):
  per_example = ((logits_batch - label_batch) ** 2).sum(1)
  return {
    'summed': per_example.sum(),
    'n_valid_examples': len(label_batch),
    'per_example': per_example,
  }

rng = np.random.default_rng(0)
def normal(*shape):
  return rng.normal(size=shape).astype(np.float32)

model = {'hidden': normal(3, 4), 'out': normal(4, 2)}
workload = types.SimpleNamespace(
  step_hint=500, num_train_examples=64, metrics_logger=None,
  model_fn=model_fn, loss_fn=loss_fn)
point = json.loads(point) if isinstance(point, str) else point
if point is not None:
  point = collections.namedtuple('Hyperparameters', point)(**point)

def queue():
  while True:
    yield {'inputs': normal(8, 3), 'targets': normal(8, 2)}

batches = queue()
state = submission.init_optimizer_state(workload, model, None, point, None)
known = dict(
  workload=workload, current_params_types=None, model_state=None,
  hyperparameters=point, loss_type=None, eval_results=[],
  rng=jax.random.PRNGKey(0))
for step in range(3):
  batch = submission.data_selection(
    workload, batches, state, model, None, point, step, None)
  state, model, _ = submission.update_params(
    current_param_container=model, optimizer_state=state, batch=batch,
    global_step=step, **known)
raw = np.concatenate([p.ravel() for p in jax.tree.leaves(model)])
state, model, _ = submission.prepare_for_eval(
  current_param_container=model, optimizer_state=state, global_step=3, **known)
shown = np.concatenate([p.ravel() for p in jax.tree.leaves(model)])
result = {
  'raw': raw.tolist(),
  'shown': shown.tolist(),
  'batch_size': submission.get_batch_size('mnist'),
}
"""
IMPORT = """
submission = importlib.import_module(f'{name}.submission')
"""
REPORT = """
result['loaded'] = sorted(
  module for module in sys.modules
  if module.startswith((f'{name}.', 'weightavg', 'lab', 'tests')))
print(json.dumps(result))
"""


def is_jax(name):
  return name.endswith('_jax')


def steps_of(name):
  return JAX_STEPS if is_jax(name) else STEPS


def run_alone(parent, name, point, cwd):
  """Import and run an exported folder where the repository cannot be seen."""
  command = [sys.executable, '-I', '-B', '-W', 'error', '-c']
  result = subprocess.run(
    [
      *command,
      ALONE + IMPORT + steps_of(name) + REPORT,
      str(parent),
      name,
      json.dumps(point),
    ],
    cwd=cwd,
    env={
      'PATH': os.environ['PATH'],
      'OMP_NUM_THREADS': '1',
      'JAX_PLATFORMS': 'cpu',
    },
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


def run_here(name, point):
  """Run the same three steps with the submission of the repository."""
  module = imports_submission(name)
  scope = {'submission': module, 'point': point, 'json': json}
  exec(compile(steps_of(name), 'STEPS', 'exec'), scope)
  return scope['result']


def imports_submission(name):
  from lab.run import submissions

  path = os.path.relpath(ROOT / 'submissions' / name / 'submission.py')
  return submissions.load(path).module
