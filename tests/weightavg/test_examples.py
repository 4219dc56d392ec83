"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil
import re

import pytest
from jax_support import HAS_JAX, REASON

import lab
import weightavg

MODULES = [
  name
  for package in (lab, weightavg)
  for _, name, _ in pkgutil.walk_packages(
    package.__path__, f'{package.__name__}.'
  )
  if not name.endswith('.__main__')
]


# An example saves a distributed checkpoint from one process.
@pytest.mark.filterwarnings('ignore:torch.distributed is')
@pytest.mark.parametrize('name', MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
  if re.search(r'\.jax($|[._])', name) and not HAS_JAX:
    pytest.skip(REASON)
  monkeypatch.chdir(tmp_path)
  assert doctest.testmod(importlib.import_module(name)).failed == 0
