"""Models to train: AlgoPerf's own where it is importable, stand-ins else.

Batches are synthetic, of the shapes and sizes that one of four GPUs gets.
"""

import dataclasses
import importlib
import importlib.metadata
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpu.setting import Setting, SkippedError

Batch = dict[str, Any]
# The benchmark's seeds are pairs.
RNG = (0, 1)


@dataclasses.dataclass
class Case:
  """A workload with a model on the device and a batch for it.

  Args:
    name: of the model.
    origin: whose model it is.
    workload: with AlgoPerf's contract.
    model: eager.
    model_state: as `init_model_fn` gave it.
    batch: on the device.
    examples: in the batch.
    compiles_loss: whether the benchmark's runner compiles the loss too.
  """

  name: str
  origin: str
  workload: Any
  model: nn.Module
  model_state: Any
  batch: Batch
  examples: int
  compiles_loss: bool = False

  def compiled(self, setting: Setting) -> nn.Module:
    """The model as the benchmark's runner compiles it."""
    options = setting.compile_options
    if self.compiles_loss:
      self.workload.loss_fn = torch.compile(self.workload.loss_fn, **options)
    return torch.compile(self.model, **options)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class Real:
  """One of AlgoPerf's workloads.

  Args:
    module: with the workload's class.
    workload_class: its name.
    batch: makes a synthetic batch of some size.
    examples: in a batch: a quarter of the global batch, the share of one of
      four GPUs.
    compiles_loss: whether the runner compiles the loss too.
  """

  module: str
  workload_class: str
  batch: Callable[[int, torch.device], Batch]
  examples: int
  compiles_loss: bool = False


def _tokens(size: int, device: torch.device, vocabulary: int, length: int):
  shape = (size, length)
  generator = torch.Generator(device).manual_seed(0)
  return torch.randint(1, vocabulary, shape, generator=generator, device=device)


def _decoder_batch(size: int, device: torch.device) -> Batch:
  tokens = _tokens(size, device, 50_257, 1025)
  return {
    'inputs': tokens[:, :-1].int().contiguous(),
    'targets': tokens[:, 1:].contiguous(),
    'weights': None,
  }


def _image_batch(size: int, device: torch.device) -> Batch:
  generator = torch.Generator(device).manual_seed(0)
  shape = (size, 3, 224, 224)
  return {
    'inputs': torch.randn(shape, generator=generator, device=device),
    'targets': torch.arange(size, device=device) % 1000,
  }


def _mixed_image_batch(size: int, device: torch.device) -> Batch:
  """With soft targets, which mixup makes."""
  batch = _image_batch(size, device)
  classes = F.one_hot(batch['targets'], 1000).float()
  batch['targets'] = 0.7 * classes + 0.3 * classes.roll(1, 0)
  return batch


def _translation_batch(size: int, device: torch.device) -> Batch:
  """Two packed sentences in each row of 256 tokens."""
  tokens = _tokens(size, device, 32_000, 512)
  inputs, targets = (half.contiguous() for half in tokens.chunk(2, dim=1))
  position = torch.arange(128, device=device).repeat(2).expand(size, 256)
  segment = torch.arange(1, 3, device=device).repeat_interleave(128)
  segment = segment.expand(size, 256)
  return {
    'inputs': inputs,
    'targets': targets,
    'inputs_position': position.contiguous(),
    'targets_position': position.contiguous(),
    'inputs_segmentation': segment.contiguous(),
    'targets_segmentation': segment.contiguous(),
    'weights': torch.ones_like(targets),
  }


_WORKLOADS = 'algoperf.workloads'
REAL = {
  'imagenet_vit': Real(
    f'{_WORKLOADS}.imagenet_vit.imagenet_pytorch.workload',
    'ImagenetVitWorkload',
    _mixed_image_batch,
    examples=256,
    compiles_loss=True,
  ),
  'finewebedu_lm': Real(
    f'{_WORKLOADS}.finewebedu_lm.finewebedu_lm_pytorch.workload',
    'LmWorkload',
    _decoder_batch,
    examples=16,
    compiles_loss=True,
  ),
  'wmt': Real(
    f'{_WORKLOADS}.wmt.wmt_pytorch.workload',
    'WmtWorkload',
    _translation_batch,
    examples=32,
    compiles_loss=True,
  ),
  'imagenet_resnet': Real(
    f'{_WORKLOADS}.imagenet_resnet.imagenet_pytorch.workload',
    'ImagenetResNetWorkload',
    _image_batch,
    examples=256,
  ),
}


def build(name: str, setting: Setting) -> Case:
  """The workload called `name`, or the local one that takes its place.

  Raises:
    SkippedError: where AlgoPerf is not importable and nothing takes its place.
  """
  real = REAL[name]
  # The benchmark's own choices, also for the stand-ins.
  torch.set_float32_matmul_precision('high')
  torch.backends.cudnn.benchmark = True
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  try:
    module = importlib.import_module(real.module)
  # Whatever its other packages raise: AlgoPerf imports many.
  except Exception as error:
    reason = f'{type(error).__name__}: {error}'.splitlines()[0]
    return _stand_in(name, reason, setting)
  workload = getattr(module, real.workload_class)()
  model, model_state = workload.init_model_fn(RNG)
  examples = setting.pick(real.examples, 1)
  return Case(
    name,
    f'AlgoPerf {_version()}',
    workload,
    model.to(setting.device),
    model_state,
    real.batch(examples, setting.device),
    examples,
    real.compiles_loss,
  )


def _version() -> str:
  try:
    return importlib.metadata.version('algoperf')
  except importlib.metadata.PackageNotFoundError:
    return getattr(importlib.import_module('algoperf'), '__version__', '')


def _stand_in(name: str, reason: str, setting: Setting) -> Case:
  """A model of this repository where AlgoPerf is not importable."""
  from benchmarks.gpu import stand_ins

  builders = {
    'finewebedu_lm': stand_ins.wide_language_model,
    'imagenet_resnet': stand_ins.small_resnet,
  }
  if name not in builders:
    raise SkippedError(f'AlgoPerf is not importable ({reason}).')
  workload, batch, examples = builders[name](setting)
  model, model_state = workload.init_model_fn(RNG)
  return Case(
    workload.name,
    f'this repository: AlgoPerf is not importable ({reason})',
    workload,
    model.to(setting.device),
    model_state,
    batch,
    examples,
  )
