"""Click-through prediction with embedding tables, on an endless stream.

Labels are drawn from a fixed random teacher: every category of a feature has a
hidden vector, and the log-odds of a click depend on the vectors' pairwise
products, on dense features, and on single categories. Category frequencies
follow a power law, as in click logs: the rare ones are seen a few times only.
"""

import functools
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lab.workloads import base
from weightavg import spec

TABLES = 8
CATEGORIES = 1000
DENSE = 8
DIMENSION = 8
_TEACHER_DIMENSION = 4
_TEACHER_SALT = 10


class Teacher:
  """The fixed distribution of examples and labels."""

  def __init__(self) -> None:
    generator = base.fixed_generator(_TEACHER_SALT)
    frequency = 1.0 / np.arange(1, CATEGORIES + 1)
    self._cumulative = np.cumsum(frequency / frequency.sum())
    shape = (TABLES, CATEGORIES, _TEACHER_DIMENSION)
    self._vectors = generator.standard_normal(shape, np.float32)
    self._biases = generator.standard_normal((TABLES, CATEGORIES), np.float32)
    mixing = generator.standard_normal((DENSE, _TEACHER_DIMENSION), np.float32)
    self._mixing = mixing / np.sqrt(np.float32(DENSE))

  def draw(
    self, generator: np.random.Generator, size: int
  ) -> dict[str, np.ndarray]:
    """Inputs [size, DENSE + TABLES] and clicks [size].

    The categories travel as floats, exact up to 2^24, beside the dense
    features: AlgoPerf's criteo1tb does the same.
    """
    uniform = generator.random((size, TABLES))
    ids = np.searchsorted(self._cumulative, uniform).clip(max=CATEGORIES - 1)
    dense = generator.standard_normal((size, DENSE), np.float32)
    tables = np.arange(TABLES)
    vectors = self._vectors[tables, ids]
    total = vectors.sum(1) + np.tanh(dense @ self._mixing)
    # Sum of all pairwise products, from the square of the sum.
    pairs = (np.square(total) - np.square(vectors).sum(1)).sum(-1) / 2
    logits = 0.25 * pairs + 0.5 * self._biases[tables, ids].sum(-1) - 0.5
    clicks = generator.random(size) < 1.0 / (1.0 + np.exp(-logits))
    inputs = np.concatenate([dense, ids.astype(np.float32)], axis=1)
    return {'inputs': inputs, 'targets': clicks.astype(np.float32)}


@functools.cache
def teacher() -> Teacher:
  """Return the teacher; built once a process."""
  return Teacher()


class Model(nn.Module):
  """A small DLRM: embeddings, dense features, dot products, an MLP."""

  offsets: torch.Tensor
  pairs: torch.Tensor

  def __init__(self) -> None:
    super().__init__()
    # One table for all features, each with its own range of rows.
    self.embedding = nn.Embedding(TABLES * CATEGORIES, DIMENSION)
    nn.init.normal_(self.embedding.weight, std=DIMENSION**-0.5)
    self.bottom = nn.Sequential(
      nn.Linear(DENSE, 32), nn.ReLU(), nn.Linear(32, DIMENSION), nn.ReLU()
    )
    features = TABLES + 1
    pairs = features * (features - 1) // 2
    self.hidden1 = nn.Linear(pairs + features * DIMENSION, 64)
    self.hidden2 = nn.Linear(64, 64)
    self.head = nn.Linear(64, 1)
    offsets = torch.arange(TABLES) * CATEGORIES
    rows, columns = torch.tril_indices(features, features, offset=-1)
    self.register_buffer('offsets', offsets, persistent=False)
    self.register_buffer('pairs', rows * features + columns, persistent=False)

  def forward(
    self, inputs: torch.Tensor, dropout_rate: float = 0.0
  ) -> torch.Tensor:
    """Logits [batch]."""
    dense, ids = inputs[:, :DENSE], inputs[:, DENSE:].long()
    vectors = self.embedding(ids + self.offsets)
    features = torch.cat([self.bottom(dense)[:, None], vectors], dim=1)
    products = torch.bmm(features, features.transpose(1, 2)).flatten(1)
    x = torch.cat([features.flatten(1), products[:, self.pairs]], dim=1)
    for layer in (self.hidden1, self.hidden2):
      x = F.dropout(F.relu(layer(x)), dropout_rate, self.training)
    return self.head(x).squeeze(-1)


class Workload(base.LocalWorkload):
  """Cross-entropy per example, in nats: lower is better."""

  name = 'click_dlrm'
  metric = 'loss'
  higher_is_better = False
  loss_kind = spec.LossType.SIGMOID_CROSS_ENTROPY
  steps = 15000
  batch_size = 128
  sizes: ClassVar = {'eval_train': 2000, 'validation': 20000, 'test': 20000}
  output_layer = 'head'
  evaluation_batch_size = 2000

  def _make_model(self) -> nn.Module:
    return Model()

  def _train_arrays(
    self, generator: np.random.Generator, size: int
  ) -> dict[str, np.ndarray]:
    return teacher().draw(generator, size)

  def _fixed_data(self) -> list[np.ndarray]:
    split = self._split('validation')
    return [split['inputs'].numpy(), split['targets'].numpy()]

  def loss_fn(
    self,
    label_batch: torch.Tensor,
    logits_batch: torch.Tensor,
    mask_batch: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
  ) -> dict[str, torch.Tensor]:
    """Sigmoid cross-entropy of each example, [batch]."""
    # Smoothing takes the labels towards 1/2, the mean over both classes.
    labels = label_batch * (1 - label_smoothing) + label_smoothing / 2
    losses = F.binary_cross_entropy_with_logits(
      logits_batch, labels, reduction='none'
    )
    return base.masked_loss(losses, mask_batch)
