"""The classifier of rendered characters in flax, with BatchNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lab.workloads import glyph_resnet
from lab.workloads.glyph_resnet import CHARACTERS, WIDTHS
from lab.workloads.jax.base import Batch, JaxWorkload

_PADDING = ((1, 1), (1, 1))


def _norm(name: str, train: bool) -> nn.BatchNorm:
  # torch's: its momentum is the weight of the new statistics, and its running
  # variance is the unbiased one, 1 / (batch * positions) larger.
  return nn.BatchNorm(
    use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name
  )


def _conv(features: int, stride: int, name: str) -> nn.Conv:
  return nn.Conv(
    features, (3, 3), stride, padding=_PADDING, use_bias=False, name=name
  )


class _Block(nn.Module):
  features: int
  stride: int
  train: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    hidden = _conv(self.features, self.stride, 'conv1')(x)
    hidden = nn.relu(_norm('bn1', self.train)(hidden))
    hidden = _conv(self.features, 1, 'conv2')(hidden)
    hidden = _norm('bn2', self.train)(hidden)
    if self.stride != 1 or x.shape[-1] != self.features:
      x = nn.Conv(
        self.features, (1, 1), self.stride, use_bias=False, name='skip_0'
      )(x)
      x = _norm('skip_1', self.train)(x)
    return nn.relu(hidden + x)


class Model(nn.Module):
  """ResNet for 16 x 16 images [batch, 1, 16, 16]: a stem and three blocks."""

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool, dropout_rate: float = 0.0
  ) -> jax.Array:
    """Logits [batch, characters]."""
    first, second, third = WIDTHS
    x = jnp.moveaxis(x, 1, -1)
    x = nn.relu(_norm('stem_bn', train)(_conv(first, 2, 'stem')(x)))
    x = _Block(first, 1, train, name='block1')(x)
    x = _Block(second, 2, train, name='block2')(x)
    x = _Block(third, 2, train, name='block3')(x)
    x = nn.Dropout(dropout_rate, deterministic=not train)(x.mean((1, 2)))
    return nn.Dense(len(CHARACTERS), name='head')(x)


class Workload(JaxWorkload, glyph_resnet.Workload):  # type: ignore[misc]
  """Accuracy, a fraction: higher is better."""

  module = Model()

  def _jax_metric_sums(
    self, batch: Batch, logits: jax.Array
  ) -> dict[str, jax.Array]:
    correct = logits.argmax(-1) == batch['targets']
    return {'accuracy': (correct * batch['weights']).sum()}
