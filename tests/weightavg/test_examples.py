"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest

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


@pytest.mark.parametrize('name', MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert doctest.testmod(importlib.import_module(name)).failed == 0
