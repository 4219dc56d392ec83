"""The skip of JAX's tests, and what they need before jax is imported."""

import importlib
import importlib.util
import os
import pathlib

import pytest

REASON = "needs pip install -e '.[jax]'"
HAS_JAX = importlib.util.find_spec('jax') is not None

_CACHE = pathlib.Path(__file__).parents[2] / '.pytest_cache' / 'jax'
# An accelerator would change the numbers. Compiling is most of a test's time:
# programs are kept. With a limit to their size, jax locks the folder, which
# several processes share.
_SETTINGS = {
  'JAX_PLATFORMS': 'cpu',
  'JAX_COMPILATION_CACHE_DIR': str(_CACHE),
  'JAX_COMPILATION_CACHE_MAX_SIZE': str(2**28),
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}
for _name, _value in _SETTINGS.items():
  os.environ.setdefault(_name, _value)


def import_jax(*names):
  """Import modules by name; skip the calling test module without jax."""
  if not HAS_JAX:
    pytest.skip(REASON, allow_module_level=True)
  _keep_all_programs()
  modules = tuple(importlib.import_module(name) for name in names)
  return modules[0] if len(modules) == 1 else modules


def _keep_all_programs():
  """Write a program without a look at all others: a fifth of the tests' time.

  The look is for the limit to their size, which the tests stay far below.
  """
  cache = importlib.import_module('jax._src.lru_cache').LRUCache
  if hasattr(cache, '_evict_if_needed'):
    cache._evict_if_needed = lambda self, *, additional_size=0: None
