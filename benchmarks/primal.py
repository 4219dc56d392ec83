"""Time of a step at an average beside fused AdamW and PyPI's schedulefree."""

from collections.abc import Callable
from typing import Any

import schedulefree
import torch
from torch import nn

from benchmarks.measure import Ratio, compare, merge, transformer_parameters
from weightavg import Polynomial
from weightavg.pytorch import Averager, NadamW

SETTINGS: dict[str, Any] = {'lr': 1e-4, 'eps': 1e-8, 'weight_decay': 0.1}


class Model(nn.Module):
  """A module that only holds parameters."""

  def __init__(self) -> None:
    super().__init__()
    self.weights = nn.ParameterList(transformer_parameters())


def _primal(fused: str | None) -> Callable[[], None]:
  model = Model()
  optimizer = NadamW(
    model.parameters(), betas=(0.0, 0.99), fused=fused, **SETTINGS
  )
  averager = Averager(model, Polynomial(9.0), interpolation=0.9)

  def step() -> None:
    averager.before_step(optimizer)
    optimizer.step()
    averager.update()

  return step


def measure() -> dict[str, Ratio]:
  fused = torch.optim.AdamW(
    transformer_parameters(), betas=(0.9, 0.99), fused=True, **SETTINGS
  )
  other = schedulefree.AdamWScheduleFree(
    transformer_parameters(), betas=(0.9, 0.99), **SETTINGS
  )
  other.train()
  others = {
    'adamw_fused': ('torch.optim.AdamW(fused=True)', lambda: fused.step()),
    'schedulefree': (
      "PyPI's AdamWScheduleFree(foreach=True)",
      lambda: other.step(),
    ),
  }

  def renamed(prefix: str) -> dict:
    return {f'{prefix}/{name}': each for name, each in others.items()}

  return merge(
    [
      compare(_primal(None), renamed('primal_step')),
      compare(_primal('compile'), renamed('primal_compiled_step')),
    ]
  )
