"""The language model on the Python standard library in flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lab.workloads import stdlib_lm
from lab.workloads.jax.base import JaxWorkload
from lab.workloads.stdlib_lm import DEPTH, HEADS, LENGTH, VOCABULARY, WIDTH

# torch's.
_EPSILON = 1e-5


class _Block(nn.Module):
  dropout_rate: float
  train: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, length, width = x.shape
    drop = nn.Dropout(self.dropout_rate, deterministic=not self.train)
    normed = nn.LayerNorm(_EPSILON, name='attention_norm')(x)
    qkv = nn.Dense(3 * width, name='qkv')(normed)
    qkv = qkv.reshape(batch, length, 3, HEADS, width // HEADS)
    q, k, v = (qkv[:, :, i] for i in range(3))
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    mixed = nn.Dense(width, name='out')(mixed.reshape(batch, length, width))
    x = x + drop(mixed)
    normed = nn.LayerNorm(_EPSILON, name='mlp_norm')(x)
    hidden = nn.gelu(nn.Dense(4 * width, name='up')(normed), approximate=False)
    return x + drop(nn.Dense(width, name='down')(hidden))


class Model(nn.Module):
  """Decoder-only Transformer; tokens [batch, length] to logits."""

  @nn.compact
  def __call__(
    self, tokens: jax.Array, train: bool, dropout_rate: float = 0.0
  ) -> jax.Array:
    """Logits [batch, length, vocabulary] of each next token."""
    embed = nn.Embed(VOCABULARY, WIDTH, name='token_embedding')
    positions = nn.Embed(LENGTH, WIDTH, name='position_embedding')
    x = embed(tokens) + positions(jnp.arange(tokens.shape[1]))
    for index in range(DEPTH):
      x = _Block(dropout_rate, train, name=f'blocks_{index}')(x)
    x = nn.LayerNorm(_EPSILON, name='final_norm')(x)
    return nn.Dense(VOCABULARY, name='head')(x)


class Workload(JaxWorkload, stdlib_lm.Workload):  # type: ignore[misc]
  """Cross-entropy per byte, in nats: lower is better."""

  module = Model()
