"""Time of a NadamW step beside fused AdamW and a loop over tensors."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.measure import Ratio, compare, merge, transformer_parameters
from weightavg.pytorch import NadamW

SETTINGS: dict[str, Any] = {
  'lr': 1e-4,
  'betas': (0.9, 0.99),
  'eps': 1e-8,
  'weight_decay': 0.1,
}


class Loop:
  """NadamW as a loop over tensors, as in AlgoPerf's baseline."""

  def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
    self.parameters = parameters
    self.m = [torch.zeros_like(p) for p in parameters]
    self.v = [torch.zeros_like(p) for p in parameters]
    self.t = 0

  @torch.no_grad()
  def step(self) -> None:
    """Make one step."""
    lr, eps, decay = (SETTINGS[k] for k in ('lr', 'eps', 'weight_decay'))
    b1, b2 = SETTINGS['betas']
    self.t += 1
    for p, m, v in zip(self.parameters, self.m, self.v, strict=True):
      grad = p.grad
      assert grad is not None
      p.mul_(1 - lr * decay)
      m.mul_(b1).add_(grad, alpha=1 - b1)
      v.mul_(b2).addcmul_(grad, grad, value=1 - b2)
      look_ahead = (m * b1).add_(grad, alpha=1 - b1)
      scale = math.sqrt(1 - b2**self.t)
      denominator = (v.sqrt() / scale).add_(eps)
      p.addcdiv_(look_ahead, denominator, value=-lr / (1 - b1**self.t))


def measure() -> dict[str, Ratio]:
  fused = torch.optim.AdamW(transformer_parameters(), fused=True, **SETTINGS)
  loop = Loop(transformer_parameters())
  against_fused = (
    'torch.optim.AdamW(fused=True)',
    lambda: fused.step(),
  )
  return merge(
    [
      compare(
        NadamW(transformer_parameters(), **SETTINGS).step,
        {
          'nadamw_step/adamw_fused': against_fused,
          'nadamw_step/reference_loop': ('a loop over tensors', loop.step),
        },
      ),
      compare(
        NadamW(transformer_parameters(), **SETTINGS, fused='compile').step,
        {'nadamw_compiled_step/adamw_fused': against_fused},
      ),
    ]
  )
