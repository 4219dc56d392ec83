"""What tests of the JAX half share: the skip, and small parameter trees."""

import importlib
import importlib.util
import os

import pytest

# Before jax is imported: an accelerator would change the numbers.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

REASON = "needs pip install -e '.[jax]'"
HAS_JAX = importlib.util.find_spec('jax') is not None


def import_jax(*names):
  """Import modules by name; skip the calling test module without jax."""
  if not HAS_JAX:
    pytest.skip(REASON, allow_module_level=True)
  modules = tuple(importlib.import_module(name) for name in names)
  return modules[0] if len(modules) == 1 else modules
