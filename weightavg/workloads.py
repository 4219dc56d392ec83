"""Names of workloads and their global batch sizes."""

import sys
from collections.abc import Callable
from typing import Any

# AlgoPerf's published baselines.
_ALGOPERF = {
  'cifar': 128,
  'criteo1tb': 262_144,
  'fastmri': 32,
  'finewebedu_lm': 64,
  'imagenet_resnet': 1024,
  'imagenet_resnet_silu': 512,
  'imagenet_resnet_gelu': 512,
  'imagenet_vit': 1024,
  'librispeech_conformer': 256,
  'librispeech_deepspeech': 256,
  'ogbg': 512,
  'wmt': 128,
  'mnist': 16,
}

# The laboratory's.
_LOCAL = {
  'stdlib_lm': 16,
  'glyph_resnet': 32,
  'click_dlrm': 128,
  'denoise_unet': 8,
}

# Shampoo's winning submission trained the speech workloads on smaller batches.
_SHAMPOO = {'librispeech_conformer': 200, 'librispeech_deepspeech': 224}


def get_batch_size(workload_name: str) -> int:
  """Global batch size of a workload, in examples.

  Raises:
    ValueError: for an unknown name. AlgoPerf's runner relies on it: it then
      asks for the base workload of a variant.
  """
  sizes = _ALGOPERF | _LOCAL
  if workload_name not in sizes:
    raise ValueError(
      f'Unknown workload {workload_name!r}. Must be one of '
      f'{", ".join(sorted(sizes))}.'
    )
  return sizes[workload_name]


def get_shampoo_batch_size(workload_name: str) -> int:
  """Global batch size with Shampoo, in examples; as `get_batch_size` else."""
  return _SHAMPOO.get(workload_name) or get_batch_size(workload_name)


def workload_name(workload: Any) -> str:
  """Name under which a runner knows the workload.

  Raises:
    ValueError: for a workload that is in no registry.
  """
  name = getattr(workload, 'name', None)
  # A workload of the benchmark does not know its name, but the benchmark's
  # registry, loaded by whoever made the workload, knows its class.
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
  """Global batch size of a workload; of a variant, that of its base workload.

  Args:
    workload: the host's.
    size_of: of a name; ValueError where it is unknown.
  """
  name = workload_name(workload)
  try:
    return size_of(name)
  except ValueError:
    # As the benchmark's runner does.
    registry = sys.modules.get('algoperf.workloads.workloads')
    if registry is None:
      raise
    return size_of(registry.get_base_workload_name(name))
