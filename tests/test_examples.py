"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest

import weightavg

MODULES = [
  name
  for _, name, _ in pkgutil.walk_packages(weightavg.__path__, 'weightavg.')
  if '.jax' not in name
]


@pytest.mark.parametrize('name', MODULES)
def test_examples_run(name):
  assert doctest.testmod(importlib.import_module(name)).failed == 0
