"""Facts that a submission needs about its optimizer, apart from the algorithm.

One module an optimizer holds its hyperparameters, its point under the
self-tuning ruleset and its batch sizes; none of it needs a framework. The
framework's half (`weightavg.pytorch.build_nadamw`) adds the function that
builds it, and a submission hands the whole over.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

# Of AlgoPerf 1.0's own submissions, in examples. A variant without an entry has
# its base workload's batch size, as in those submissions.
# algorithms/baselines/external_tuning/pytorch_nadamw_full_budget.py, but for
# cifar: algorithms/development_algorithms/cifar/cifar_pytorch/submission.py,
# for imagenet_vit_glu: algorithms/target_setting_algorithms/get_batch_size.py.
ALGOPERF_BATCH_SIZES = {
  'cifar': 128,
  'criteo1tb': 262_144,
  'fastmri': 32,
  'finewebedu_lm': 64,
  'imagenet_resnet': 1024,
  'imagenet_resnet_silu': 512,
  'imagenet_resnet_gelu': 512,
  'imagenet_vit': 1024,
  'imagenet_vit_glu': 512,
  'librispeech_conformer': 256,
  'librispeech_deepspeech': 256,
  'ogbg': 512,
  'wmt': 128,
  'mnist': 16,
}


def published_batch_size(workload_name: str) -> int:
  """Global batch size of AlgoPerf's baselines, in examples.

  Raises:
    ValueError: for an unknown name.
  """
  if workload_name not in ALGOPERF_BATCH_SIZES:
    raise ValueError(
      f'Unknown workload {workload_name!r}. Must be one of '
      f'{", ".join(sorted(ALGOPERF_BATCH_SIZES))}.'
    )
  return ALGOPERF_BATCH_SIZES[workload_name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """An optimizer as a submission names it.

  Args:
    name: in checkpoints and tables.
    config: class of its hyperparameters (`weightavg.config_fields`).
    build: makes it from a model and its configuration.
    self_tuning_point: the point of the self-tuning ruleset, which gives none.
    batch_sizes: global batch size in examples by workload, where it differs
      from that of AlgoPerf's baselines.
    defaults: keys of a point and their values where a point has none, if they
      differ from those of the configuration.
  """

  name: str
  config: type
  build: Callable[[Any, Any], Any]
  self_tuning_point: Mapping[str, Any]
  batch_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def get_batch_size(self, workload_name: str) -> int:
    """Global batch size of a workload, in examples.

    Raises:
      ValueError: for an unknown name. AlgoPerf's runner relies on it: it then
        asks for the base workload of a variant.
    """
    own = self.batch_sizes.get(workload_name)
    return published_batch_size(workload_name) if own is None else own
