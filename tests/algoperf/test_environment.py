"""The `algoperf` extra gives a benchmark that loads data; registries only.

WEIGHTAVG_ALGOPERF_SOURCE names a checkout of the benchmark, which stands in for
the address in setup.cfg. WEIGHTAVG_ALGOPERF_TORCH, such as `torch==2.13.0`,
stands in for the extra `pytorch-gpu` on a machine without room for CUDA.
"""

import configparser
import os
import pathlib
import subprocess
import sys

import pytest

from lab.launch import benchmark

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCE = os.environ.get('WEIGHTAVG_ALGOPERF_SOURCE')
TORCH = os.environ.get('WEIGHTAVG_ALGOPERF_TORCH')

BATCH = """
import os
import sys
import jax
import tensorflow_datasets as tfds
from algoperf.workloads.mnist import workload

features = tfds.features.FeaturesDict({
  'image': tfds.features.Image(shape=(28, 28, 1)),
  'label': tfds.features.ClassLabel(num_classes=10),
})
folder = sys.argv[1] + '/mnist/3.0.1'
os.makedirs(folder)
identity = tfds.core.DatasetIdentity(
  name='mnist', version=tfds.core.Version('3.0.1'), data_dir=folder,
  module_name='',
)
writer = tfds.core.SequentialWriter(
  tfds.core.DatasetInfo(builder=identity, features=features),
  max_examples_per_shard=100, overwrite=False,
)
writer.initialize_splits(['train', 'test'])
import numpy as np
image = np.zeros((28, 28, 1), np.uint8)
writer.add_examples({
  split: [{'image': image, 'label': k % 10} for k in range(20)]
  for split in ('train', 'test')
})
writer.close_all()
batches = workload._build_mnist_dataset(
  jax.random.PRNGKey(0), 50_000, 10_000, 0.1, 0.3, 'test', sys.argv[1], 4
)
batch = next(batches)
assert batch['inputs'].shape[-3:] == (28, 28, 1), batch['inputs'].shape
import transformers, datasets, submission_runner
"""


def extra():
  """Requirements of the `algoperf` extra."""
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  text = config['options.extras_require']['algoperf']
  return [line for line in text.splitlines() if line]


def test_the_extra_names_the_commit_that_the_launcher_expects():
  first = extra()[0]
  assert first.endswith(f'@{benchmark.COMMIT}')
  # Underscores in the names of extras are ignored by the pip of Python 3.11.
  assert '_' not in first.partition('@')[0]


@pytest.mark.slow
@pytest.mark.skipif(not SOURCE, reason='WEIGHTAVG_ALGOPERF_SOURCE is not set')
def test_the_extra_gives_a_benchmark_that_loads_a_batch(tmp_path):
  names, *others = extra()
  extras = names.partition(' @')[0].removeprefix('algoperf')
  if TORCH:
    extras = extras.replace(',pytorch-gpu', '')
    others.append(TORCH)
  folder = tmp_path / 'environment'
  subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
  python = str(folder / 'bin' / 'python')
  done = subprocess.run(
    [python, '-m', 'pip', 'install', '-q', f'{SOURCE}{extras}', *others],
    env={**os.environ, 'SETUPTOOLS_SCM_PRETEND_VERSION': '1.0.0'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert 'does not provide the extra' not in done.stderr
  done = subprocess.run(
    [python, '-c', BATCH, str(tmp_path)], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
