"""Fixtures of the JAX half."""

from jax_fixtures import devices

__all__ = ['devices']
