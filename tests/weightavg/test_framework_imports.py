"""The PyTorch half runs without jax, the JAX half without torch."""

import pathlib
import pkgutil
import subprocess
import sys

import pytest
from jax_support import HAS_JAX, REASON

import weightavg

ROOT = pathlib.Path(__file__).parents[2]
MODULES = [
  name
  for _, name, _ in pkgutil.walk_packages(
    weightavg.__path__, 'weightavg.', onerror=lambda name: None
  )
  # algoperf, where it is installed, imports both.
  if name != 'weightavg.spec'
]
# Makes an import fail as in an environment without the module.
_SCRIPT = """
import importlib, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(',')))
sys.modules['algoperf'] = None
for name in sys.argv[2:]:
  importlib.import_module(name)
"""


def import_without(hidden, modules):
  subprocess.run(
    [sys.executable, '-c', _SCRIPT, hidden, *modules], check=True, cwd=ROOT
  )


def test_pytorch_half_imports_without_jax():
  import_without(
    'jax,jaxlib,flax,optax',
    [name for name in MODULES if not name.startswith('weightavg.jax')],
  )


@pytest.mark.skipif(not HAS_JAX, reason=REASON)
def test_jax_half_imports_without_torch():
  """So does everything that it imports: the configuration among it."""
  modules = [name for name in MODULES if name.startswith('weightavg.jax')]
  assert len(modules) > 5
  import_without('torch', modules)
