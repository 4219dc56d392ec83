"""Measure a swap: showing the average and restoring the raw weights."""

import torch

from benchmarks.measure import Ratio, compare, transformer_parameters
from weightavg import AveragingConfig
from weightavg.pytorch import Averager


def measure() -> dict[str, Ratio]:
  parameters = transformer_parameters()
  averager = Averager.from_config(
    [(str(i), p) for i, p in enumerate(parameters)],
    AveragingConfig.from_point(averaging_scheme='ema', averaging_every_steps=1),
    budget=1000,
  )
  averager.update()
  flat = torch.randn(sum(p.numel() for p in parameters))
  copy = torch.empty_like(flat)

  def swap() -> None:
    averager.swap_in()
    averager.swap_out()

  return compare(
    swap,
    {
      'swap/flat_copy': (
        'one copy_ of one flat tensor of the same bytes (EMA, in and out)',
        lambda: copy.copy_(flat),
      )
    },
  )
