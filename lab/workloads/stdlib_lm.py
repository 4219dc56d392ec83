"""Language model on the Python standard library's own sources.

A small pre-LayerNorm Transformer predicts the next byte. Validation and test
are held-out files, chosen by a hash of their path.
"""

import functools
import hashlib
import os
import pathlib
import sysconfig
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lab.workloads import base
from weightavg import spec

VOCABULARY = 128  # ASCII; every other byte becomes 127
LENGTH = 64
WIDTH = 64
HEADS = 4
DEPTH = 2

# Third-party code, tests, and files that installations generate for
# themselves: what is left is the same for one version of Python.
_LEFT_OUT = {
  '__pycache__',
  'dist-packages',
  'ensurepip',
  'idlelib',
  'lib2to3',
  'pydoc_data',
  'site-packages',
  'test',
  'tests',
  'turtledemo',
}
_SHARES = {'validation': 0.04, 'test': 0.04}


def split_of(path: str) -> str:
  """Split of a file, from a hash of its path below the library's folder."""
  digest = hashlib.sha256(path.encode()).digest()
  share = int.from_bytes(digest[:4], 'big') / 2**32
  for split, width in _SHARES.items():
    if share < width:
      return split
    share -= width
  return 'train'


@functools.cache
def corpus() -> dict[str, np.ndarray]:
  """Tokens of each split, the files in sorted order."""
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  paths = []
  for folder, folders, files in os.walk(root):
    folders[:] = [name for name in folders if name not in _LEFT_OUT]
    for name in files:
      if name.endswith('.py') and not name.startswith(
        ('_sysconfigdata', 'sitecustomize', 'usercustomize')
      ):
        paths.append((pathlib.Path(folder) / name).relative_to(root).as_posix())
  parts: dict[str, list[bytes]] = {'train': [], 'validation': [], 'test': []}
  for path in sorted(paths):
    text = (root / path).read_bytes().replace(b'\r\n', b'\n')
    parts[split_of(path)].append(text + b'\0')
  return {
    split: np.minimum(np.frombuffer(b''.join(texts), np.uint8), VOCABULARY - 1)
    for split, texts in parts.items()
  }


class _Block(nn.Module):
  def __init__(self) -> None:
    super().__init__()
    self.attention_norm = nn.LayerNorm(WIDTH)
    self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
    self.out = nn.Linear(WIDTH, WIDTH)
    self.mlp_norm = nn.LayerNorm(WIDTH)
    self.up = nn.Linear(WIDTH, 4 * WIDTH)
    self.down = nn.Linear(4 * WIDTH, WIDTH)

  def forward(self, x: torch.Tensor, dropout_rate: float) -> torch.Tensor:
    batch, length, width = x.shape
    qkv = self.qkv(self.attention_norm(x))
    qkv = qkv.view(batch, length, 3, HEADS, width // HEADS)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mixed = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
    x = x + F.dropout(mixed, dropout_rate, self.training)
    hidden = self.down(F.gelu(self.up(self.mlp_norm(x))))
    return x + F.dropout(hidden, dropout_rate, self.training)


class Model(nn.Module):
  """Decoder-only Transformer; tokens [batch, length] to logits."""

  def __init__(self) -> None:
    super().__init__()
    self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
    self.position_embedding = nn.Embedding(LENGTH, WIDTH)
    self.blocks = nn.ModuleList(_Block() for _ in range(DEPTH))
    self.final_norm = nn.LayerNorm(WIDTH)
    self.head = nn.Linear(WIDTH, VOCABULARY)
    for embedding in (self.token_embedding, self.position_embedding):
      nn.init.normal_(embedding.weight, std=0.1)

  def forward(
    self, tokens: torch.Tensor, dropout_rate: float = 0.0
  ) -> torch.Tensor:
    """Logits [batch, length, vocabulary] of each next token."""
    positions = self.position_embedding.weight[: tokens.shape[1]]
    x = self.token_embedding(tokens) + positions
    for block in self.blocks:
      x = block(x, dropout_rate)
    return self.head(self.final_norm(x))


class Workload(base.LocalWorkload):
  """Cross-entropy per byte, in nats: lower is better."""

  name = 'stdlib_lm'
  metric = 'loss'
  higher_is_better = False
  loss_kind = spec.LossType.SOFTMAX_CROSS_ENTROPY
  steps = 3000
  batch_size = 16
  # Windows of LENGTH tokens: 16,384 validation tokens.
  sizes: ClassVar = {'eval_train': 32, 'validation': 256, 'test': 192}
  output_layer = 'head'
  evaluation_batch_size = 64

  def _make_model(self) -> nn.Module:
    return Model()

  def _train_arrays(
    self, generator: np.random.Generator, size: int
  ) -> dict[str, np.ndarray]:
    tokens = corpus()['train']
    starts = generator.integers(0, len(tokens) - LENGTH, size=size)
    return _windows(tokens, starts)

  def _split_arrays(
    self, split: str, generator: np.random.Generator, size: int
  ) -> dict[str, np.ndarray]:
    if split == 'eval_train':
      return super()._split_arrays(split, generator, size)
    tokens = corpus()[split]
    starts = np.linspace(0, len(tokens) - LENGTH - 1, size).astype(np.int64)
    return _windows(tokens, starts)

  def _fixed_data(self) -> list[np.ndarray]:
    return [*corpus().values()]

  def loss_fn(
    self,
    label_batch: torch.Tensor,
    logits_batch: torch.Tensor,
    mask_batch: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
  ) -> dict[str, torch.Tensor]:
    """Cross-entropy of each token, [batch, length]."""
    losses = F.cross_entropy(
      logits_batch.flatten(0, 1),
      label_batch.flatten(),
      reduction='none',
      label_smoothing=label_smoothing,
    )
    return base.masked_loss(losses.view_as(label_batch), mask_batch)


def _windows(tokens: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
  window = tokens[starts[:, None] + np.arange(LENGTH + 1)].astype(np.int64)
  return {'inputs': window[:, :-1], 'targets': window[:, 1:]}
