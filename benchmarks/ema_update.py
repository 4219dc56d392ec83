"""Measure one EMA update against its memory traffic and other libraries."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks import timm_ema
from benchmarks.measure import Ratio, compare, merge, transformer_parameters
from weightavg import AveragingConfig
from weightavg.pytorch import Averager

DECAY = 0.999


class Model(nn.Module):
  """A module that only holds parameters."""

  def __init__(self) -> None:
    super().__init__()
    self.weights = nn.ParameterList(transformer_parameters())


def measure() -> dict[str, Ratio]:
  model = Model()
  averager = Averager.from_config(
    model,
    AveragingConfig.from_point(
      averaging_scheme='ema', ema_decay=DECAY, averaging_every_steps=1
    ),
    budget=1000,
  )
  flat = [torch.randn(sum(p.numel() for p in model.parameters()))] * 2
  flat = [t.clone() for t in flat]
  swa = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
  loop = copy.deepcopy(model)

  @torch.no_grad()
  def per_tensor_loop() -> None:
    for average, p in zip(loop.parameters(), model.parameters(), strict=True):
      average.lerp_(p, 1 - DECAY)

  others: dict[str, tuple[str, Callable[[], object]]] = {
    'flat_lerp': (
      'one lerp_ over one flat tensor of the same bytes',
      lambda: flat[0].lerp_(flat[1], 1 - DECAY),
    ),
    'swa_utils': (
      'torch.optim.swa_utils.AveragedModel, get_ema_multi_avg_fn',
      lambda: swa.update_parameters(model),
    ),
    'ema_pytorch': (
      'ema-pytorch, use_foreach=True, update_every=1',
      _ema_pytorch(model),
    ),
    'timm_style_loop': ('a loop of lerp_ over tensors', per_tensor_loop),
  }
  timm = timm_ema.load()
  if timm is not None:
    model_ema = timm.ModelEmaV3(model, decay=DECAY)
    others['timm'] = ('timm.utils.ModelEmaV3', lambda: model_ema.update(model))

  def renamed(prefix: str) -> dict:
    return {f'{prefix}/{name}': other for name, other in others.items()}

  return merge(
    [
      compare(averager.update, renamed('ema_update')),
      # Without the check for NaN and infinity.
      compare(
        lambda: averager.update(finite=True), renamed('ema_update_unchecked')
      ),
    ]
  )


def _ema_pytorch(model: nn.Module):
  from ema_pytorch import EMA

  ema = EMA(
    model, beta=DECAY, update_every=1, update_after_step=-1, use_foreach=True
  )
  return ema.update
