"""Measure an EMA update, a LAWA sample, a LAWA mean and a swap on a device.

Bytes set the scale: `copies` is the time as a multiple of one flat copy of the
model (one read, one write) at the speed that the device was measured at.
"""

import copy
import functools
import importlib.util
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks import timm_ema
from benchmarks.gpu import shapes, timing
from benchmarks.gpu.setting import Attempts, Rows, Setting
from benchmarks.gpu.synchronisations import total, waits
from weightavg import AveragingConfig
from weightavg.pytorch import Averager

DECAY = 0.999
WINDOW = 10


class Model(nn.Module):
  """A module that only holds parameters."""

  def __init__(self, weights: list[nn.Parameter]) -> None:
    super().__init__()
    self.weights = nn.ParameterList(weights)


def _averager(model: nn.Module, scheme: str, **knobs: object) -> Averager:
  knobs = {'averaging_every_steps': 1} | knobs
  config = AveragingConfig.from_point(averaging_scheme=scheme, **knobs)
  return Averager.from_config(model, config, budget=1000)


def _torch_average(model: nn.Module) -> Callable[[], object]:
  average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
  return lambda: average.update_parameters(model)


def _ema_pytorch(model: nn.Module) -> Callable[[], object] | None:
  if not importlib.util.find_spec('ema_pytorch'):
    return None
  from ema_pytorch import EMA

  ema = EMA(
    model, beta=DECAY, update_every=1, update_after_step=-1, use_foreach=True
  )
  return ema.update


def _timm(model: nn.Module) -> Callable[[], object] | None:
  timm = timm_ema.load()
  if timm is None:
    return None
  model_ema = timm.ModelEmaV3(model, decay=DECAY)
  return lambda: model_ema.update(model)


# EMA updates of other libraries; None where one is not installed.
PEERS: dict[str, Callable[[nn.Module], Callable[[], object] | None]] = {
  'torch AveragedModel': _torch_average,
  'ema-pytorch': _ema_pytorch,
  'timm ModelEmaV3': _timm,
}


def _peers(
  model: nn.Module, attempts: Attempts
) -> dict[str, Callable[[], object]]:
  """Return the peers' updates, each of which has worked once."""
  found: dict[str, Callable[[], object]] = {}
  for name, build in PEERS.items():
    with attempts.one(name):
      update = build(model)
      if update is not None:
        update()
        found[name] = update
  return found


def measure(setting: Setting) -> Rows:
  """Rows `<model>/<operation>`."""
  attempts = Attempts()
  for name, model_shapes in shapes.families(setting).items():
    model = Model(shapes.parameters(model_shapes, setting))
    count = sum(p.numel() for p in model.parameters())
    source = torch.randn(count, device=setting.device)
    target = torch.empty_like(source)
    copy_ms = timing.interleaved(
      {'copy': functools.partial(target.copy_, source)},
      setting.device,
      calls=setting.pick(10, 1),
    )['copy']
    yield (
      f'{name}/flat copy',
      {
        'ms': copy_ms,
        'copies': 1.0,
        'gigabytes_per_second': 8 * count / copy_ms / 1e6,
      },
    )
    peers = _peers(copy.deepcopy(model), attempts)
    for rows in (
      _ema(model, source, target, peers, setting),
      _lawa(model, setting),
      _swap(model, setting),
    ):
      for operation, values in rows:
        yield f'{name}/{operation}', _in_copies(values, copy_ms)
      timing.free(setting.device)
    del peers
  attempts.check()


def _in_copies(values: dict, copy_ms: float) -> dict:
  return {'ms': values['ms'], 'copies': values['ms'] / copy_ms} | values


def _ema(
  model: nn.Module,
  source: torch.Tensor,
  target: torch.Tensor,
  peers: dict[str, Callable[[], object]],
  setting: Setting,
) -> Rows:
  averager = _averager(model, 'ema', ema_decay=DECAY)
  averager.update()
  calls: dict[str, Callable[[], object]] = {
    'flat lerp_': functools.partial(target.lerp_, source, 1 - DECAY),
    'EMA update': averager.update,
    'EMA update, unchecked': functools.partial(averager.update, finite=True),
    **peers,
  }
  times = timing.interleaved(calls, setting.device, calls=setting.pick(10, 1))
  for operation, ms in times.items():
    values: dict = {'ms': ms}
    if operation.startswith('EMA update'):
      values['waits'] = total(waits(calls[operation], setting.device))
    yield operation, values


def _lawa(model: nn.Module, setting: Setting) -> Rows:
  averager = _averager(model, 'lawa', lawa_window=WINDOW)
  for _ in range(WINDOW):
    averager.update()
  calls: dict[str, Callable[[], object]] = {
    'LAWA sample, unchecked': lambda: averager.update(finite=True)
  }
  if averager.placement is not None:
    weights = [p.detach() for p in model.parameters()]
    placement = averager.placement
    # Ten reads and one write: 5.5 copies at least.
    calls[f'LAWA mean of {WINDOW}'] = lambda: placement.shown(weights)
  times = timing.interleaved(calls, setting.device, calls=setting.pick(3, 1))
  for operation, ms in times.items():
    waited = total(waits(calls[operation], setting.device))
    yield operation, {'ms': ms, 'waits': waited}


def _swap(model: nn.Module, setting: Setting) -> Rows:
  for how in ('exchange', 'copy'):
    averager = _averager(model, 'ema', averaging_swap=how)
    averager.update()
    sample = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
      for p in model.parameters():
        p.add_(1.0)
    raw = [p.detach().clone() for p in model.parameters()]

    def swap(averager: Averager = averager) -> None:
      averager.swap_in()
      averager.swap_out()

    ms = timing.interleaved({how: swap}, setting.device)[how]
    averager.swap_in()
    shown = _equal(model, sample)
    averager.swap_out()
    yield (
      f'swap in and out, {how}',
      {
        'ms': ms,
        'waits': total(waits(swap, setting.device)),
        'average_shown': shown,
        'raw_bit_identical': _equal(model, raw),
      },
    )


def _equal(model: nn.Module, tensors: list[torch.Tensor]) -> bool:
  """Return True if the model holds exactly these weights."""
  pairs = zip(model.parameters(), tensors, strict=True)
  return all(torch.equal(p.detach(), t) for p, t in pairs)
