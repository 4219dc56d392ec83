"""Local workloads in place of AlgoPerf's, where that is not importable."""

from typing import Any

import torch
from torch import nn

from benchmarks.gpu.setting import Setting
from lab.workloads import glyph_resnet, stdlib_lm


class Decoder(nn.Module):
  """The 23 M transformer whose shapes `benchmarks.measure` lists.

  Args:
    width: of the residual stream; heads have 64 dimensions or less.
    depth: number of blocks.
    vocabulary: rows of the tied embedding.
  """

  def __init__(self, width: int, depth: int, vocabulary: int) -> None:
    super().__init__()
    self.embedding = nn.Embedding(vocabulary, width)
    self.blocks = nn.ModuleList(
      nn.TransformerEncoderLayer(
        width,
        max(1, width // 64),
        4 * width,
        dropout=0.0,
        batch_first=True,
        norm_first=True,
      )
      for _ in range(depth)
    )
    nn.init.normal_(self.embedding.weight, std=0.02)

  def forward(
    self, tokens: torch.Tensor, dropout_rate: float = 0.0
  ) -> torch.Tensor:
    """Logits [batch, length, vocabulary] of each next token."""
    del dropout_rate
    x = self.embedding(tokens)
    mask = nn.Transformer.generate_square_subsequent_mask(
      tokens.shape[1], device=tokens.device
    )
    for block in self.blocks:
      x = block(x, src_mask=mask, is_causal=True)
    return x @ self.embedding.weight.T


class WideLanguageModel(stdlib_lm.Workload):
  """`stdlib_lm` with another model: width 512 and depth 6 rather than 64, 2."""

  name = 'wide_stdlib_lm'

  def __init__(self, width: int, depth: int, vocabulary: int) -> None:
    super().__init__()
    self._size = (width, depth, vocabulary)

  def _make_model(self) -> nn.Module:
    return Decoder(*self._size)


def wide_language_model(setting: Setting) -> tuple[Any, dict, int]:
  """Workload, batch and number of examples."""
  width, depth, vocabulary = setting.pick((512, 6, 8000), (16, 1, 50))
  examples, length = setting.pick((64, 256), (2, 8))
  generator = torch.Generator(setting.device).manual_seed(0)
  tokens = torch.randint(
    vocabulary,
    (examples, length + 1),
    generator=generator,
    device=setting.device,
  )
  batch = {
    'inputs': tokens[:, :-1].contiguous(),
    'targets': tokens[:, 1:].contiguous(),
  }
  return WideLanguageModel(width, depth, vocabulary), batch, examples


def small_resnet(setting: Setting) -> tuple[Any, dict, int]:
  """Workload, batch and number of examples."""
  examples = setting.pick(1024, 4)
  generator = torch.Generator(setting.device).manual_seed(0)
  shape = (examples, 1, glyph_resnet.SIZE, glyph_resnet.SIZE)
  batch = {
    'inputs': torch.randn(shape, generator=generator, device=setting.device),
    'targets': torch.arange(examples, device=setting.device)
    % len(glyph_resnet.CHARACTERS),
  }
  return glyph_resnet.Workload(), batch, examples
