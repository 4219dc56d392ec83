"""The local workloads, by name: `build_workload('stdlib_lm')`.

Each implements AlgoPerf's Workload contract and needs no download.
"""

import importlib
from typing import Any

WORKLOADS = {
  'click_dlrm': 'lab.workloads.click_dlrm:Workload',
  'denoise_unet': 'lab.workloads.denoise_unet:Workload',
  'glyph_resnet': 'lab.workloads.glyph_resnet:Workload',
  'stdlib_lm': 'lab.workloads.stdlib_lm:Workload',
}
# The one whose full runs are shortest.
QUICKSTART_WORKLOAD = 'click_dlrm'


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
