"""Imports between the rooms point in one direction.

setup.cfg states the layers (`lint-imports`); this file runs them and adds
what a contract cannot say about modules that do not exist yet.
"""

import subprocess
import sys

import grimp
import pytest
from pages import ROOT

PACKAGES = ('weightavg', 'lab', 'submissions', 'benchmarks')


@pytest.fixture(scope='module')
def graph():
  return grimp.build_graph(
    *PACKAGES, include_external_packages=True, cache_dir=None
  )


def packages_of(graph, modules):
  """Top-level packages that modules import directly."""
  return {
    name.partition('.')[0]
    for module in modules
    for name in graph.find_modules_directly_imported_by(module)
  }


def test_the_contracts_of_setup_cfg_hold():
  # In a process of its own: it writes to absl's handler, whose stream pytest
  # may have closed.
  code = 'from importlinter.cli import lint_imports_command as run; run()'
  command = [sys.executable, '-c', code, '--no-cache', '--config', 'setup.cfg']
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize('framework', ['torch', 'jax'])
def test_configuration_needs_no_framework(graph, framework):
  own = {'weightavg', *graph.find_descendants('weightavg')}
  own = {m for m in own if m.split('.')[1:2] not in (['pytorch'], ['jax'])}
  assert len(own) > 5
  needed = (
    graph.find_downstream_modules(framework)
    if framework in graph.modules
    else set()
  )
  assert not own & needed


def test_submissions_import_only_weightavg(graph):
  faces = {m for m in graph.find_descendants('submissions') if m.count('.') > 1}
  assert len(faces) >= 9
  assert packages_of(graph, faces) == {'weightavg'}


def test_weightavg_needs_no_more_than_it_installs(graph):
  own = graph.find_descendants('weightavg')
  integrations = {module for module in own if '.integrations.' in f'{module}.'}
  hosts = packages_of(graph, integrations)
  own -= integrations
  external = packages_of(graph, own) - {'weightavg'}
  installed = {'torch', 'numpy', 'absl'}
  # Imported only where they are installed.
  optional = {'algoperf', 'flax', 'jax', 'optax', 'triton'}
  assert external <= installed | optional | set(sys.stdlib_module_names)
  assert hosts <= external | {
    'weightavg', 'lightning', 'pytorch_lightning', 'transformers',
  } | installed | set(sys.stdlib_module_names)  # fmt: skip
