"""Measure a plain training loop with an EMA at every step, by library.

Each library takes three lines: build, update after each step, evaluate on the
average. All loops train copies of one model on the same inputs. timm is left
out where it is not installed.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks import timm_ema
from benchmarks.measure import Ratio, compare
from weightavg import Ema
from weightavg.pytorch import Averager

DECAY = 0.999
# Steps of one timed call; one evaluation follows them.
STEPS = 10
ROWS, WIDTH = 64, 512


def _model() -> nn.Module:
  torch.manual_seed(0)
  layers: list[nn.Module] = []
  for _ in range(12):
    layers += [nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU()]
  return nn.Sequential(*layers, nn.Linear(WIDTH, 1))


def _loop(
  model: nn.Module, update: Callable[[], object], evaluate: Callable[[], object]
) -> Callable[[], None]:
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
  inputs = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))

  def run() -> None:
    for _ in range(STEPS):
      model(inputs).square().mean().backward()
      optimizer.step()
      optimizer.zero_grad()
      update()
    with torch.no_grad():
      evaluate()

  return run


def _bytes(tensors: list[Tensor]) -> int:
  return sum(t.numel() * t.element_size() for t in tensors)


def measure() -> dict[str, Ratio]:
  from ema_pytorch import EMA

  base, inputs = _model(), torch.randn(ROWS, WIDTH)
  ours, theirs, third, fourth, plain = (copy.deepcopy(base) for _ in range(5))
  averager = Averager(ours, Ema(DECAY))
  swa = AveragedModel(theirs, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
  ema = EMA(
    third,
    beta=DECAY,
    update_every=1,
    update_after_step=-1,
    use_foreach=True,
    include_online_model=False,
  )

  def evaluate() -> None:
    with averager.evaluating():
      ours(inputs)

  others: dict[str, tuple[str, Callable[[], object]]] = {
    'own_loop/no_average': (
      f'{STEPS} steps and one evaluation without an average',
      _loop(plain, lambda: None, lambda: plain(inputs)),
    ),
    'own_loop/swa_utils': (
      'the same with torch.optim.swa_utils.AveragedModel',
      _loop(theirs, lambda: swa.update_parameters(theirs), lambda: swa(inputs)),
    ),
    'own_loop/ema_pytorch': (
      'the same with ema-pytorch, use_foreach=True',
      _loop(third, ema.update, lambda: ema(inputs)),
    ),
  }
  kept_by = {'swa_utils': swa.module, 'ema_pytorch': ema.ema_model}
  timm = timm_ema.load()
  if timm is not None:
    model_ema = timm.ModelEmaV3(fourth, decay=DECAY)
    others['own_loop/timm'] = (
      'the same with timm.utils.ModelEmaV3',
      _loop(
        fourth, lambda: model_ema.update(fourth), lambda: model_ema(inputs)
      ),
    )
    kept_by['timm'] = model_ema.module
  results = compare(_loop(ours, averager.update, evaluate), others)
  model = _bytes(list(base.state_dict().values()))
  assert averager.placement is not None
  assert averager._swap.backup is not None
  kept = averager.placement.nbytes() + _bytes(averager._swap.backup)
  for name, module in kept_by.items():
    size = _bytes(list(module.state_dict().values()))
    results[f'own_loop_bytes/{name}'] = Ratio(
      kept / size,
      None,
      None,
      f'what it keeps, {size / model:.0f} model(s); ours with the default '
      "swap='copy', after an evaluation",
      1,
    )
  return results
