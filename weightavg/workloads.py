"""Names of workloads, and their global batch sizes."""

import sys
from collections.abc import Callable
from typing import Any


def workload_name(workload: Any) -> str:
  """Name under which a runner knows the workload.

  Raises:
    ValueError: for a workload that is in no registry.
  """
  name = getattr(workload, 'name', None)
  # A workload of the benchmark does not know its name, but the benchmark's
  # registry, which made the workload, knows its class.
  registry = sys.modules.get('algoperf.workloads.workloads')
  for known, metadata in getattr(registry, 'WORKLOADS', {}).items():
    if metadata['workload_class_name'] == type(workload).__name__:
      name = known
  if name is None:
    raise ValueError(
      f'Unknown workload class {type(workload).__name__}: its name, and so its '
      'batch size, cannot be told.'
    )
  return name


def batch_size_of(workload: Any, size_of: Callable[[str], int]) -> int:
  """Global batch size of a workload, in examples.

  The submission's, if it knows the name; else the workload's own `batch_size`,
  if it has one; else that of the base workload of a variant.

  Args:
    workload: the host's.
    size_of: the submission's, by name; ValueError where it is unknown.
  """
  name = workload_name(workload)
  try:
    return size_of(name)
  except ValueError:
    own = getattr(workload, 'batch_size', None)
    if own is not None:
      return own
    # As the benchmark's runner does.
    registry = sys.modules.get('algoperf.workloads.workloads')
    if registry is None:
      raise
    return size_of(registry.get_base_workload_name(name))
