"""The laboratory's readers of files, each with inputs to begin with."""

import csv
import dataclasses
import io
import json
import pathlib
import pickle
import zipfile
from collections.abc import Callable

import fuzz
import jax_support
import numpy as np
import safetensors.torch
import torch
from hypothesis import strategies as st

from lab.core import logs, search_space
from lab.offline import plans, posthoc, series, sweep, writers
from lab.offline.readers import Checkpoint
from lab.report import layout, log_files, targets
from lab.run import checkpoints
from lab.run.run_state import RunState


class Payload:
  """Writes a file when it is unpickled without restrictions."""

  def __reduce__(self):
    return open, ('payload_ran', 'w')


@dataclasses.dataclass(frozen=True)
class Target:
  """A reader, and what it is fed with.

  Args:
    file: Name of the file in the input's folder.
    inputs: Strategy of its content.
    read: Called with its path; may raise InputError.
    inputs_in_long_form: How many the long form tries.
  """

  file: str
  inputs: st.SearchStrategy[bytes]
  read: Callable[[pathlib.Path], object]
  inputs_in_long_form: int


def _json(content) -> bytes:
  return json.dumps(content).encode()


POINTS = [
  _json([{'learning_rate': 0.1, 'averaging_horizon': 0.01}]),
  _json({'a': {'min': 1e-4, 'max': 1.0, 'scaling': 'log'}}),
  _json({'a': {'feasible_points': [1, 2]}}),
]


def read_search_space(path):
  for point in search_space.load(str(path), 3, seed=0):
    search_space.as_hyperparameters(point)


TARGETS_JSON = _json(
  {
    'benchmark_version': '1.0',
    'base_workloads': ['wmt', 'ogbg'],
    'workloads': {
      'wmt': {
        'target_metric_name': 'bleu',
        'validation_target_value': 30.8,
        'step_hint': 120000,
      },
      'ogbg': {
        'target_metric_name': 'mean_average_precision',
        'validation_target_value': 0.28,
      },
    },
  }
)

CSV = (
  b'validation/bleu,score,global_step,accumulated_submission_time,'
  b'accumulated_eval_time,accumulated_logging_time,total_duration\n'
  b'1.5,10.0,5,10.0,1.0,0.1,11.0\n2.5,20.0,10,20.0,2.0,0.2,22.0\n'
  b'31.0,30.0,15,30.0,3.0,0.3,33.0\n'
)


def read_table(path):
  """As the runner does when it resumes."""
  for name in (logs.MEASUREMENTS, logs.EVAL_MEASUREMENTS):
    (path.parent / name).write_bytes(path.read_bytes())
  logger = logs.MetricsLogger(str(path.parent))
  logger.rewind(10)
  logger.append_scalar_metrics({'loss': 1.0}, 11)
  # What has been written is a table of equally long rows.
  with open(path.parent / logs.MEASUREMENTS, newline='') as file:
    widths = {len(row) for row in csv.reader(file)}
  assert len(widths) == 1, widths


def read_evaluations(path):
  (path.parent / logs.EVAL_MEASUREMENTS).write_bytes(path.read_bytes())
  sweep.evaluations(str(path.parent))


def _trial(path):
  trial = path.parent / 'logs' / 'sub' / 'study_0' / 'wmt_pytorch' / 'trial_1'
  trial.mkdir(parents=True, exist_ok=True)
  for name in (logs.HPARAMS, 'meta_data_0.json', 'profile.json'):
    (trial / name).write_bytes(b'{}')
  (trial / logs.EVAL_MEASUREMENTS).write_bytes(CSV)
  return trial


def _report(path, name):
  trial = _trial(path)
  (trial / name).write_bytes(path.read_bytes())
  goals = targets.of_version().goals
  folder = path.parent / 'logs'
  assert layout.find(folder)
  return log_files.Reader(goals).read([folder])


def read_report_csv(path):
  _report(path, logs.EVAL_MEASUREMENTS)


def read_report_json(path):
  for name in (logs.HPARAMS, 'meta_data_0.json', 'profile.json'):
    _report(path, name)


def read_tensors(path):
  with Checkpoint(str(path)) as checkpoint:
    for name in checkpoint.layout:
      checkpoint.tensor(name)


def _saved(content) -> bytes:
  buffer = io.BytesIO()
  torch.save(content, buffer)
  return buffer.getvalue()


def _legacy(content) -> bytes:
  buffer = io.BytesIO()
  torch.save(content, buffer, _use_new_zipfile_serialization=False)
  return buffer.getvalue()


def _compressed(content: bytes) -> bytes:
  buffer = io.BytesIO()
  with (
    zipfile.ZipFile(io.BytesIO(content)) as old,
    zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as new,
  ):
    for entry in old.infolist():
      data = old.read(entry)
      # A tensor of zeros: a thousandth of its size in the file.
      new.writestr(entry.filename, data)
  return buffer.getvalue()


MODEL = torch.nn.Linear(3, 2)
STATE = {'weight': torch.ones(2, 3), 'n': torch.tensor(3), 'x': 1.5}


def run_content(**changes):
  state = RunState({}, MODEL, None)
  state.train_state['last_step_end_time'] = 1.0
  return {
    'model_params': MODEL.state_dict(),
    'optimizer_state': {},
    'model_state': None,
    'train_state': state.train_state,
    'eval_results': ((5, {'validation/loss': 0.5}),),
    'global_step': 5,
    'preemption_count': 0,
    **changes,
  }


TORCH = [
  _saved(STATE),
  _saved({'model_params': STATE}),
  _legacy(STATE),
  _compressed(_saved({'w': torch.zeros(1 << 22)})),
  _saved({'w': torch.ones(1).expand(1 << 40)}),
  _saved({'w': bytearray(100)}),
  _saved({'w': torch.ones(3).to_sparse()}),
  _saved({'w': torch.empty(3, device='meta')}),
  _saved(Payload()),
  pickle.dumps(Payload()),
  pickle.dumps({'w': Payload()}, protocol=2),
]
RUN = [
  _saved(run_content()),
  _saved(run_content(global_step=-1)),
  _saved(run_content(global_step=2**80)),
  _saved(run_content(train_state={})),
  _saved(run_content(eval_results=3)),
  _saved(run_content(optimizer_state=[1])),
  _saved(run_content(model_params=3)),
  *TORCH[2:],
]


def read_run(path):
  """As the runner does when it resumes."""
  if checkpoints.damage(str(path)) is None:
    state = RunState({}, torch.nn.Linear(3, 2), None)
    checkpoints.restore(state, str(path), torch.device('cpu'))


SAFETENSORS = [
  safetensors.torch.save({'a': torch.ones(2, 3), 'b': torch.ones(4)}),
  safetensors.torch.save(
    {'a': torch.ones(2)},
    {writers.RECIPE: _json({'step': 1}).decode(), 'b': 'a'},
  ),
]


def _header(content) -> bytes:
  header = json.dumps(content).encode()
  return len(header).to_bytes(8, 'little') + header + bytes(64)


_ENTRY = {'dtype': 'F32', 'shape': [2, 2], 'data_offsets': [0, 16]}
SAFETENSORS += [
  (2**63).to_bytes(8, 'little') + b'{}',
  (10**9).to_bytes(8, 'little') + b'{}',
  _header({'a': _ENTRY | {'data_offsets': [0, 2**62]}}),
  _header({'a': _ENTRY | {'shape': [2**40, 2**40]}}),
  _header({'a': _ENTRY | {'shape': [-2, -2]}}),
  _header({'a': _ENTRY | {'dtype': 'F4'}}),
  _header({'a': _ENTRY, 'b': _ENTRY}),
  _header({'__metadata__': {'a': 3}, 'a': _ENTRY}),
  _header([1]),
]

RECIPE = {'scheme': 'polynomial', 'power': 6.9, 'samples': 3, 'step': 3}


def read_snapshot(path):
  """A snapshot whose recipe is the input."""
  text = path.read_bytes().decode(errors='replace')
  file = path.with_name('posthoc_0_step_3.safetensors')
  safetensors.torch.save_file(
    {'a': torch.ones(2)}, file, {writers.RECIPE: text}
  )
  posthoc.find([str(file)])


INDEX = [
  _json({'weight_map': {'a': 'x.safetensors'}}),
  _json({'weight_map': {'a': '../outside.safetensors'}}),
  _json({'weight_map': {'a': '/etc/passwd'}}),
  _json({'weight_map': {'a': 'model.safetensors.index.json'}}),
  _json({'weight_map': {'a': '.'}}),
]


def read_index(path):
  safetensors.torch.save_file(
    {'a': torch.ones(2)}, path.parent / 'x.safetensors'
  )
  read_tensors(path)


TEMPLATES = [
  b'avg_{window}_{at}.pt',
  b'{scheme.__class__}',
  b'{at:999999999}',
  b'{at!r:>99999}',
  b'{window[0]}{}',
]


def read_template(path):
  template = path.read_bytes().decode(errors='replace')
  fields = [{'scheme': 'lawa', 'window': w, 'at': 20} for w in (2, 3)]
  for found in plans.output_paths(template, fields):
    assert len(found) < 10 * (len(template) + 10) + 200


def read_step(path):
  name = path.read_bytes().decode(errors='replace')[:200].replace('\0', '')
  series.step_of(f'run/{name}')


TARGETS = {
  'search spaces': Target(
    'space.json',
    fuzz.edited(POINTS)
    | fuzz.json_files(('a', 'min', 'max', 'scaling', 'feasible_points')),
    read_search_space,
    20000,
  ),
  'targets': Target(
    'targets.json',
    fuzz.edited([TARGETS_JSON])
    | fuzz.json_files(
      ('base_workloads', 'workloads', 'wmt', 'validation_target_value')
    ),
    targets.read,
    10000,
  ),
  'report: measurements': Target(
    'input.csv', fuzz.edited([CSV]), read_report_csv, 8000
  ),
  'report: other logs': Target(
    'input.json',
    fuzz.edited([_json({'lawa_inner_steps_frac': 0.5, 'gpu_count': 2})])
    | fuzz.json_files(
      ('lawa_inner_steps_frac', 'gpu_count', 'sections', 'total_seconds')
    ),
    read_report_json,
    6000,
  ),
  'runner: measurements': Target(
    'input.csv', fuzz.edited([CSV]), read_table, 8000
  ),
  'offline: evaluations': Target(
    'input.csv', fuzz.edited([CSV]), read_evaluations, 10000
  ),
  'offline: PyTorch files': Target(
    'model_1.pt', fuzz.edited(TORCH), read_tensors, 6000
  ),
  'offline: safetensors': Target(
    'model_1.safetensors', fuzz.edited(SAFETENSORS), read_tensors, 8000
  ),
  'offline: shard indices': Target(
    'model.safetensors.index.json',
    fuzz.edited(INDEX) | fuzz.json_files(('weight_map', 'a')),
    read_index,
    4000,
  ),
  'offline: snapshots': Target(
    'input.json',
    fuzz.edited([_json(RECIPE)]) | fuzz.json_files(tuple(RECIPE)),
    read_snapshot,
    4000,
  ),
  'offline: output names': Target(
    'input.txt', fuzz.edited(TEMPLATES), read_template, 8000
  ),
  'offline: names of checkpoints': Target(
    'input.txt',
    fuzz.edited([b'checkpoint_20', b'x-1-of-2.pt']),
    read_step,
    4000,
  ),
  'runner: checkpoints': Target(
    'checkpoint_5', fuzz.edited(RUN), read_run, 5000
  ),
}

if jax_support.HAS_JAX:
  from flax import serialization

  from lab.run import jax_checkpoints

  def _packed(**changes) -> bytes:
    content = run_content(**changes)
    plain = {key: content[key] for key in jax_checkpoints.PLAIN}
    trees = {
      'model_params': {'w': np.ones(3, np.float32)},
      'optimizer_state': {},
      'model_state': {},
    }
    return serialization.msgpack_serialize(
      {**trees, 'plain': json.dumps(plain)}
    )

  def read_jax(path):
    _, plain = jax_checkpoints.read(str(path))
    checkpoints.check_plain(plain, str(path))

  TARGETS['runner: checkpoints in JAX'] = Target(
    'checkpoint_5',
    fuzz.edited([_packed(), _packed(global_step=-1), _packed(train_state=3)]),
    read_jax,
    5000,
  )


def run(
  guard: fuzz.Guard, target: Target, folder: pathlib.Path, content: bytes
) -> None:
  """Feed a reader with an input; fails if it does what it must not do."""
  path = folder / target.file
  path.write_bytes(content)
  with guard.active(folder, len(content)):
    target.read(path)
  assert not pathlib.Path('payload_ran').exists()
