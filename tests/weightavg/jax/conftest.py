"""Fixtures of the JAX half."""

from jax_fixtures import devices, x64

__all__ = ['devices', 'x64']
