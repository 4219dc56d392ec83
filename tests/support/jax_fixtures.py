"""Fixtures for tests of JAX: 64-bit numbers, several simulated devices."""

import pytest


@pytest.fixture
def x64():
  """Enable float64, then restore the default."""
  import jax

  jax.config.update('jax_enable_x64', True)
  yield
  jax.config.update('jax_enable_x64', False)


@pytest.fixture
def devices():
  """Simulate four CPU devices, then restore the single one."""
  import jax
  from jax.extend import backend

  backend.clear_backends()
  jax.config.update('jax_num_cpu_devices', 4)
  yield jax.devices()
  backend.clear_backends()
  jax.config.update('jax_num_cpu_devices', -1)
