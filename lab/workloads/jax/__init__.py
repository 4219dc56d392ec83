"""Twins of local workloads in JAX: same data, same model, same initial weights.

One module a twin, named after the workload, that defines `Workload`.
"""

import importlib
import pkgutil
from typing import Any

# Modules here that are parts of workloads.
_PARTS = {'base', 'weights'}

WORKLOADS = tuple(
  module.name
  for module in pkgutil.iter_modules(__path__)
  if module.name not in _PARTS
)


def build_workload(name: str) -> Any:
  """Build the twin of a workload.

  Raises:
    ValueError: the workload has no twin.
  """
  if name not in WORKLOADS:
    raise ValueError(
      f'Invalid workload={name!r}. Must be one of {", ".join(WORKLOADS)} with '
      "framework='jax'."
    )
  return importlib.import_module(f'{__name__}.{name}').Workload()
