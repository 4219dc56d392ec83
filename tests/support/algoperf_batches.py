"""Random batches with the shapes, dtypes and keys of the real pipelines.

Importing this module imports neither algoperf nor TensorFlow; calls do.
"""

import numpy as np
import torch
from algoperf_support import quiet_import


def make_batch(name, seed=0):
  """A random batch with the shapes, dtypes and keys of the real pipeline."""
  registry = quiet_import('algoperf.workloads.workloads')
  base = registry.get_base_workload_name(name)
  return _BATCHES[base](np.random.default_rng(seed))


def _images(rng, n, shape, classes):
  return {
    'inputs': torch.tensor(rng.normal(size=(n, *shape)), dtype=torch.float32),
    'targets': torch.tensor(rng.integers(classes, size=n)),
    'weights': torch.ones(n, dtype=torch.bool),
  }


def _mnist(rng):
  return _images(rng, 8, (1, 28, 28), 10)


def _cifar(rng):
  # The benchmark's torchvision pipelines yield no weights for training.
  batch = _images(rng, 4, (3, 32, 32), 10)
  del batch['weights']
  return batch


def _imagenet(rng):
  batch = _images(rng, 2, (3, 224, 224), 1000)
  del batch['weights']
  return batch


def _criteo1tb(rng):
  # 13 dense features and 26 categories, all floats in one row.
  dense = rng.normal(size=(16, 13))
  categories = rng.integers(2**16, size=(16, 26))
  return {
    'inputs': torch.tensor(
      np.concatenate([dense, categories], axis=1), dtype=torch.float32
    ),
    'targets': torch.tensor(rng.integers(2, size=(16, 1)), dtype=torch.float32),
    'weights': torch.ones(16),
  }


def _fastmri(rng):
  # No weights either: the benchmark adds them for evaluation only.
  image = torch.tensor(rng.normal(size=(1, 320, 320)), dtype=torch.float32)
  return {
    'inputs': image,
    'targets': image.roll(1, dims=-1),
    'mean': torch.zeros(1),
    'std': torch.ones(1),
    'volume_max': torch.ones(1),
  }


def _librispeech(rng):
  # 16 kHz sound, 256 tokens; paddings are 1 where padded. The benchmark pads
  # to 20 s; 4 s are a fifth of the time, and no layer depends on the length.
  n, samples, tokens = 2, 64_000, 256
  sound = rng.normal(scale=0.1, size=(n, samples))
  padding = np.zeros((n, samples))
  padding[1, 40_000:] = 1
  length = np.array([[24], [16]])
  target_padding = (np.arange(tokens)[None] >= length).astype(np.float32)
  targets = rng.integers(1, 1024, size=(n, tokens)) * (1 - target_padding)
  return {
    'inputs': (
      torch.tensor(sound * (1 - padding), dtype=torch.float32),
      torch.tensor(padding, dtype=torch.float32),
    ),
    'targets': (
      torch.tensor(targets, dtype=torch.float32),
      torch.tensor(target_padding),
    ),
  }


def graphs(rng, **options):
  """A batch of four random molecules, by the benchmark's own pipeline."""
  pipeline = quiet_import('algoperf.workloads.ogbg.input_pipeline')
  tf = quiet_import('tensorflow')

  def molecules():
    while True:
      nodes, edges = 20, 40
      labels = rng.integers(2, size=128).astype(np.float32)
      labels[rng.random(128) < 0.3] = np.nan
      example = {
        'num_nodes': np.array([nodes]),
        'edge_index': rng.integers(nodes, size=(edges, 2)),
        'node_feat': rng.normal(size=(nodes, 9)).astype(np.float32),
        'edge_feat': rng.normal(size=(edges, 3)).astype(np.float32),
        'labels': labels,
      }
      yield {key: tf.constant(value) for key, value in example.items()}

  return next(pipeline._get_batch_iterator(molecules(), 4, 1, **options))


def _ogbg(rng):
  torch_side = quiet_import('algoperf.workloads.ogbg.ogbg_pytorch.workload')
  batch = graphs(rng, shard_dim=True)
  targets = torch.as_tensor(batch['targets'])
  weights = torch.as_tensor(batch['weights'], dtype=torch.bool)
  return {
    'inputs': torch_side._graph_map(torch_side._pytorch_map, batch['inputs']),
    'targets': targets.view(-1, targets.shape[-1]),
    'weights': weights.view(-1, weights.shape[-1]),
  }


def _finewebedu_lm(rng):
  # The benchmark's sequences have 1,024 tokens and no weights for training.
  tokens = rng.integers(50_257, size=(2, 65))
  return {
    'inputs': torch.tensor(tokens[:, :-1], dtype=torch.int32),
    'targets': torch.tensor(tokens[:, 1:], dtype=torch.int64),
    'weights': None,
  }


def _wmt(rng):
  # One pair of packed sentences: two segments each, the rest is padding.
  length = 256

  def side(first, second):
    tokens = np.zeros((1, length), dtype=np.int64)
    position = np.zeros_like(tokens)
    segment = np.zeros_like(tokens)
    tokens[0, : first + second] = rng.integers(3, 32_000, size=first + second)
    position[0, : first + second] = [*range(first), *range(second)]
    segment[0, :first] = 1
    segment[0, first : first + second] = 2
    return [torch.tensor(array) for array in (tokens, position, segment)]

  batch = {}
  for key, lengths in (('inputs', (30, 40)), ('targets', (28, 44))):
    values = side(*lengths)
    names = (key, f'{key}_position', f'{key}_segmentation')
    batch.update(zip(names, values, strict=True))
  batch['weights'] = (batch['targets'] > 0).long()
  return batch


_BATCHES = {
  'mnist': _mnist,
  'cifar': _cifar,
  'criteo1tb': _criteo1tb,
  'fastmri': _fastmri,
  'finewebedu_lm': _finewebedu_lm,
  'imagenet_resnet': _imagenet,
  'imagenet_vit': _imagenet,
  'librispeech_conformer': _librispeech,
  'librispeech_deepspeech': _librispeech,
  'ogbg': _ogbg,
  'wmt': _wmt,
}
