"""Measure a step of NadamW against torch's own AdamW."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu import shapes, timing
from benchmarks.gpu.setting import Attempts, Rows, Setting
from benchmarks.gpu.synchronisations import total, waits
from weightavg.pytorch import NadamW

SETTINGS: dict[str, Any] = {
  'lr': 1e-4,
  'betas': (0.9, 0.99),
  'eps': 1e-8,
  'weight_decay': 0.1,
}
# Weights, gradients and two moments read; all but the gradients written.
BYTES_PER_PARAMETER = 7 * 4


def measure(setting: Setting) -> Rows:
  """Rows `<model>/<optimizer>`."""
  # One compilation takes half a minute: that of the largest model.
  *_, largest = shapes.families(setting)
  compiled = setting.pick(largest, '')
  attempts = Attempts()
  for name, model_shapes in shapes.families(setting).items():
    optimizers: dict[str, torch.optim.Optimizer] = {
      'AdamW, fused': torch.optim.AdamW(
        shapes.parameters(model_shapes, setting), fused=True, **SETTINGS
      ),
      'AdamW, foreach': torch.optim.AdamW(
        shapes.parameters(model_shapes, setting), foreach=True, **SETTINGS
      ),
      'NadamW': NadamW(shapes.parameters(model_shapes, setting), **SETTINGS),
    }
    if name == compiled:
      # A compiler may be missing.
      with attempts.one('NadamW, compiled'):
        optimizer = NadamW(
          shapes.parameters(model_shapes, setting), fused='compile', **SETTINGS
        )
        optimizer.step()
        optimizers['NadamW, compiled'] = optimizer
    calls: dict[str, Callable[[], object]] = {
      kind: functools.partial(optimizer.step)
      for kind, optimizer in optimizers.items()
    }
    times = timing.interleaved(
      calls, setting.device, calls=setting.pick(10, 1), warmup=2
    )
    count = sum(
      p.numel() for p in optimizers['NadamW'].param_groups[0]['params']
    )
    for kind, ms in times.items():
      yield (
        f'{name}/{kind}',
        {
          'ms': ms,
          'of_fused_adamw': ms / times['AdamW, fused'],
          'gigabytes_per_second': BYTES_PER_PARAMETER * count / ms / 1e6,
          'waits': total(waits(calls[kind], setting.device)),
        },
      )
    del optimizers, calls
    timing.free(setting.device)
  attempts.check()
