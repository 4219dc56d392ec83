"""Exported submissions: whole, alone, and the same as what they came from."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest
from jax_support import HAS_JAX, REASON

from lab.core.errors import InputError
from lab.export import exporter, imports

ROOT = pathlib.Path(__file__).parents[3]
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
  """The same three steps with the submission of the repository."""
  module = imports_submission(name)
  scope = {'submission': module, 'point': point, 'json': json}
  exec(compile(steps_of(name), 'STEPS', 'exec'), scope)
  return scope['result']


def imports_submission(name):
  from lab.run import submissions

  path = os.path.relpath(ROOT / 'submissions' / name / 'submission.py')
  return submissions.load(path).module


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  output = tmp_path_factory.mktemp('exported')
  exporter.main([*NAMES, '--output', str(output), '--authors', 'A. Nonymous'])
  exporter.main([*NAMES, '--output', str(output), '--ruleset', 'self'])
  return output


# Each costs a process that imports torch: one of each optimizer and ruleset
# runs, all are looked through.
@pytest.mark.parametrize(
  ('ruleset', 'name', 'point'),
  [
    ('external', 'nadamw_lawa', POINT),
    ('external', 'shampoo_ema', POINT),
    # Among one there is no choice of the raw weights.
    ('external', 'nadamw_auto', POINT | {'averaging_candidates': 'ema 0.1'}),
    ('self', 'nadamw_ema', None),
    ('external', 'nadamw_lawa_jax', POINT),
    pytest.param(
      'external', 'nadamw_primal_jax', POINT, marks=pytest.mark.slow
    ),
    pytest.param(
      'external',
      'nadamw_auto_jax',
      POINT | {'averaging_candidates': 'ema 0.1'},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_an_export_runs_alone_as_its_origin_does(
  exported, tmp_path, monkeypatch, ruleset, name, point
):
  if is_jax(name) and not HAS_JAX:
    pytest.skip(REASON)
  monkeypatch.chdir(ROOT)
  parent = exported / exporter.FOLDERS[ruleset]
  alone = run_alone(parent, name, point, tmp_path)
  here = run_here(name, point)
  # Every module that is loaded comes out of the exported folder.
  loaded = alone.pop('loaded')
  part = 'jax.trainer' if is_jax(name) else 'pytorch.averager'
  assert f'{name}.weightavg.{part}' in loaded
  assert all(module.startswith(f'{name}.') for module in loaded)
  # The same code on the same numbers: bit for bit.
  assert alone == here
  # Averaged over three steps, not the last weights.
  assert alone['raw'] != alone['shown']


@pytest.mark.parametrize('name', NAMES)
def test_folders_carry_no_other_optimizer_than_their_own(exported, name):
  folder = exported / exporter.FOLDERS['external'] / name
  own, other = ('jax', 'pytorch') if is_jax(name) else ('pytorch', 'jax')
  half = folder / 'weightavg' / own
  is_shampoo = name.startswith('shampoo')
  assert (half / 'shampoo').exists() == is_shampoo
  assert (half / 'nadamw.py').exists() != is_shampoo
  assert not (folder / 'weightavg' / other).exists()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('ruleset', ['external', 'self'])
def test_folders_hold_what_the_benchmark_asks_for(exported, ruleset, name):
  folder = exported / exporter.FOLDERS[ruleset] / name
  files = {
    'LICENSE',
    '__init__.py',
    'requirements.txt',
    'submission.py',
    'submission_info.yml',
    'weightavg',
  }
  if ruleset == 'external':
    files.add('tuning_search_space.json')
    space = json.loads((folder / 'tuning_search_space.json').read_text())
    source = ROOT / 'tuning_search_spaces' / f'{name}.json'
    assert space == json.loads(source.read_text())
  assert {path.name for path in folder.iterdir()} == files
  lines = (folder / 'submission_info.yml').read_text().splitlines()
  info = {line.split(': ', 1)[0]: line.split(': ', 1)[1] for line in lines}
  info = {key: json.loads(value) for key, value in info.items()}
  assert info['submission_folder'] == name
  assert (
    info['ruleset'] == {'external': 'external', 'self': 'self-tuning'}[ruleset]
  )
  assert info['framework'] == ('JAX' if is_jax(name) else 'PyTorch')
  # The form's reader cuts lines at a hash before it reads YAML.
  assert not any('#' in line for line in lines)
  assert info['submission_name']
  assert info['authors'] == ('A. Nonymous' if ruleset == 'external' else '')
  # pip reads it, and installs nothing.
  requirements = (folder / 'requirements.txt').read_text().splitlines()
  assert all(line.startswith('#') for line in requirements)


@pytest.mark.parametrize('name', NAMES)
def test_imports_are_relative_and_lead_to_a_file(exported, name):
  folder = exported / 'external_tuning' / name
  reached = {folder / '__init__.py', folder / 'submission.py'}
  for path in folder.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        tops = {alias.name.partition('.')[0] for alias in node.names}
        assert tops <= sys.stdlib_module_names | exporter.PROVIDED
      if not isinstance(node, ast.ImportFrom):
        continue
      if not node.level:
        top = node.module.partition('.')[0]
        assert top in sys.stdlib_module_names | exporter.PROVIDED
        continue
      base = path.parents[node.level - 1].joinpath(
        *(node.module or '').split('.')
      )
      for alias in node.names:
        found = [
          candidate
          for candidate in (
            base / f'{alias.name}.py',
            base / alias.name / '__init__.py',
            base.with_suffix('.py'),
            base / '__init__.py',
          )
          if candidate.is_file()
        ]
        assert found, f'{path}:{node.lineno}'
        reached.add(found[0])
  # Nothing that no import leads to, but what makes a folder a package.
  assert {
    path
    for path in set(folder.rglob('*.py')) - reached
    if path.name != '__init__.py'
  } == set()


def repository(tmp_path, files):
  """A small repository whose submission imports what a test is about."""
  root = tmp_path / 'root'
  names = {
    'LICENSE': 'licence\n',
    'tuning_search_spaces/one.json': '[{"a": 1}]',
    'weightavg/__init__.py': '"""Package."""\n\nfrom weightavg.dead import x\n',
    'weightavg/dead.py': 'x = 1\n',
    'weightavg/used.py': 'import torch\n\ny = torch\n',
    'submissions/one/submission.py': '"""One."""\n\nfrom weightavg import used',
  }
  for name, text in (names | files).items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return root


def test_what_a_package_offers_to_others_stays_behind(tmp_path):
  files = exporter.contents('one', root=repository(tmp_path, {}))
  assert files['submission.py'] == '"""One."""\n\nfrom .weightavg import used'
  assert files['weightavg/__init__.py'] == '"""Package."""\n'
  assert 'weightavg/dead.py' not in files
  assert 'torch.' in files['requirements.txt']


def test_what_is_imported_from_a_package_comes_along(tmp_path):
  source = '"""One."""\n\nfrom weightavg import x, used\n'
  root = repository(tmp_path, {'submissions/one/submission.py': source})
  files = exporter.contents('one', root=root)
  assert files['weightavg/__init__.py'].endswith('from .dead import x\n')
  assert files['weightavg/dead.py'] == 'x = 1\n'


def test_imports_inside_functions_and_with_as_are_followed(tmp_path):
  source = (
    'import weightavg.used as u\n\n\n'
    'def f():\n  from weightavg.dead import x as y\n  return u, y\n'
  )
  root = repository(tmp_path, {'submissions/one/submission.py': source})
  files = exporter.contents('one', root=root)
  assert files['submission.py'] == (
    'from .weightavg import used as u\n\n\n'
    'def f():\n  from .weightavg.dead import x as y\n  return u, y\n'
  )


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('from lab import logs', 'it imports lab. Must import only weightavg'),
    ('import tests.fakes', 'it imports tests.fakes.'),
    ('from submissions.two import submission', 'it imports submissions.two'),
    ('import pandas', 'it imports pandas.'),
    ('from weightavg.nosuch import x', 'no module weightavg.nosuch'),
    ('import weightavg.used', 'it has no relative form'),
    ('from . import x', 'Must be absolute'),
    ('import importlib; importlib.import_module("a")', 'cannot be followed'),
  ],
)
def test_what_must_not_leave_is_refused(tmp_path, line, message):
  for file in ('submissions/one/submission.py', 'weightavg/used.py'):
    text = f'"""One."""\n\nfrom weightavg import used\n{line}\n'
    if file == 'weightavg/used.py':
      text = text.replace('from weightavg import used\n', '')
    root = repository(tmp_path / file[0], {file: text})
    with pytest.raises(InputError) as error:
      exporter.contents('one', root=root)
    assert message in str(error.value)
    assert f'{file}:' in str(error.value)


def tree(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


def call(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'lab.export', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_existing_folders_are_replaced_only_when_told(tmp_path):
  files = {'submission.py': 'new\n'}
  target = tmp_path / 'external_tuning' / 'one'
  exporter.write({'external_tuning/one': files}, tmp_path)
  (target / 'stale.py').write_text('old\n')
  before = tree(tmp_path)
  with pytest.raises(InputError, match=r'exists\. Use --overwrite'):
    exporter.write({'external_tuning/one': files}, tmp_path)
  assert tree(tmp_path) == before
  exporter.write({'external_tuning/one': files}, tmp_path, overwrite=True)
  assert tree(tmp_path) == {'external_tuning/one/submission.py': b'new\n'}


def test_what_is_not_an_export_is_never_replaced(tmp_path):
  target = tmp_path / 'external_tuning' / 'one'
  target.mkdir(parents=True)
  (target / 'thesis.tex').write_text('years of work')
  before = tree(tmp_path)
  with pytest.raises(InputError, match='Must be an exported submission'):
    exporter.write({'external_tuning/one': {}}, tmp_path, overwrite=True)
  assert tree(tmp_path) == before


def test_one_bad_folder_stops_all_and_writes_nothing(tmp_path):
  (tmp_path / 'external_tuning' / 'b').mkdir(parents=True)
  exports = {f'external_tuning/{n}': {'submission.py': ''} for n in 'abc'}
  with pytest.raises(InputError):
    exporter.write(exports, tmp_path)
  assert tree(tmp_path) == {}


def test_a_failed_write_leaves_the_earlier_export(tmp_path, monkeypatch):
  exporter.write({'x/one': {'submission.py': 'old\n'}}, tmp_path)
  before = tree(tmp_path)

  def full(path, text, encoding):
    raise OSError('No space left on device')

  monkeypatch.setattr(pathlib.Path, 'write_text', full)
  with pytest.raises(OSError, match='No space left'):
    exporter.write(
      {'x/one': {'submission.py': 'new'}}, tmp_path, overwrite=True
    )
  assert tree(tmp_path) == before
  assert os.listdir(tmp_path) == ['x']


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
  exporter.write({'x/one': {'submission.py': 'old\n'}}, tmp_path)
  before = tree(tmp_path)
  rename = os.rename

  def refuse_new(source, target):
    if 'new' in pathlib.Path(source).parts:
      raise PermissionError('no rights')
    rename(source, target)

  monkeypatch.setattr(os, 'rename', refuse_new)
  with pytest.raises(PermissionError):
    exporter.write(
      {'x/one': {'submission.py': 'new'}}, tmp_path, overwrite=True
    )
  assert tree(tmp_path) == before


@pytest.mark.parametrize(
  ('arguments', 'part'),
  [
    (['nosuch', '--output', 'OUT'], "Invalid submission='nosuch'. Must be all"),
    (['nadamw', '--output', 'FILE'], 'is not a writable directory'),
    (['nadamw'], 'required: --output'),
    (['nadamw', '--output', 'OUT', '--ruleset', 'both'], "choice: 'both'"),
    (['nadamw', '--output', 'OUT', '--authors', 'A #1'], 'line without #'),
    (['nadamw', '--output', 'OUT', '--affiliations', '`A`'], 'line without #'),
    (['nadamw', '--output', 'OUT', '--affiliations', 'A$B'], 'line without #'),
  ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
  tmp_path, capsys, arguments, part
):
  (tmp_path / 'file').write_text('kept')
  places = {'OUT': str(tmp_path / 'out'), 'FILE': str(tmp_path / 'file')}
  with pytest.raises(InputError) as error:
    exporter.main([places.get(a, a) for a in arguments])
  assert part in str(error.value)
  assert '\n' not in str(error.value)
  assert os.listdir(tmp_path) == ['file']


def test_the_command_exits_with_1(tmp_path):
  result = call('nosuch', '--output', str(tmp_path / 'out'))
  assert result.returncode == 1
  assert len(result.stderr.splitlines()) == 1
  assert result.stderr.startswith('error: Invalid submission=')


def test_the_title_of_the_pull_request_is_printed(tmp_path, capsys):
  exporter.main(['shampoo_auto', '--output', str(tmp_path)])
  assert (
    '[submission] Distributed Shampoo + chosen average'
    in capsys.readouterr().out
  )


def test_titles():
  assert exporter.title('shampoo_ema') == 'Distributed Shampoo + EMA'
  assert exporter.title('nadamw_polynomial') == 'NadamW + polynomial average'
  assert exporter.title('nadamw_schedule_free') == 'NadamW + Schedule-Free'


def test_relative_names():
  name = imports._relative_name
  assert name('p.a.b', 'p.a.__init__') == '.b'
  assert name('p', 'p.a.b') == '..'
  assert name('p.a', 'p.b') == '.a'
