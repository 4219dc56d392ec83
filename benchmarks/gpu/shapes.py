"""Parameters of two models by their shapes alone."""

import torch
from torch import nn

from benchmarks.gpu.setting import Setting
from benchmarks.measure import SHAPES

# The decoder of AlgoPerf 1.0's finewebedu_lm: width 1024, twelve blocks, a
# vocabulary of 50,257, tied embeddings.
DECODER_SHAPES: list[tuple[int, ...]] = [
  (50257, 1024),
  *12
  * [(3072, 1024), (1024, 1024), (8192, 1024), (1024, 4096), (1024,), (1024,)],
  (1024,),
]
TINY_SHAPES: list[tuple[int, ...]] = [(40, 8), (24, 8), (24,), (8, 8), (8,)]


def families(setting: Setting) -> dict[str, list[tuple[int, ...]]]:
  """Shapes by the name of their model."""
  if setting.smoke:
    return {'tiny': TINY_SHAPES}
  return {'transformer_23m': list(SHAPES), 'decoder_253m': DECODER_SHAPES}


def parameters(
  shapes: list[tuple[int, ...]], setting: Setting, seed: int = 0
) -> list[nn.Parameter]:
  """Parameters of these shapes on the device, with gradients."""
  generator = torch.Generator(setting.device).manual_seed(seed)

  def random(shape: tuple[int, ...], scale: float) -> torch.Tensor:
    values = torch.randn(shape, generator=generator, device=setting.device)
    return values * scale

  result = [nn.Parameter(random(shape, 0.02)) for shape in shapes]
  for p in result:
    p.grad = random(tuple(p.shape), 1e-3)
  return result
