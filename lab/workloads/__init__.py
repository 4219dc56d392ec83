"""The local workloads, by name: `build_workload('stdlib_lm')`.

Each implements AlgoPerf's Workload contract, needs no download, and is one
module of this folder, named after the workload, that defines `Workload`. A new
module is found without being listed anywhere.
"""

import importlib
import pkgutil
from typing import Any

# Modules here that are parts of workloads.
_PARTS = {'base', 'device', 'modules', 'stream', 'targets'}

# Name to module and class.
WORKLOADS = {
  module.name: f'{__name__}.{module.name}:Workload'
  for module in pkgutil.iter_modules(__path__)
  if not module.ispkg and module.name not in _PARTS
}


def build_workload(name: str) -> Any:
  """Build a workload.

  Raises:
    ValueError: no workload has this name.
  """
  if name not in WORKLOADS:
    allowed = ', '.join(sorted(WORKLOADS))
    raise ValueError(f'Invalid workload={name!r}. Must be one of {allowed}.')
  module, attribute = WORKLOADS[name].split(':')
  return getattr(importlib.import_module(module), attribute)()
