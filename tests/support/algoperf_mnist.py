"""Runs of `submission_runner.py` on synthetic images in mnist's layout."""

import csv
import io
import os
import pathlib
import subprocess
import sys

import algoperf_support as support
import numpy as np
import pytest
import torch

STEPS = 60


@pytest.fixture(scope='module')
def mnist(tmp_path_factory):
  """A data directory with mnist/3.0.1: 60,000 and 10,000 synthetic images."""
  tf = support.quiet_import('tensorflow')
  tfds = support.quiet_import('tensorflow_datasets')
  data_dir = tmp_path_factory.mktemp('data')
  folder = data_dir / 'mnist' / '3.0.1'
  folder.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(28, 28, 1)),
      'label': tfds.features.ClassLabel(num_classes=10),
    }
  )
  identity = tfds.core.DatasetIdentity(
    name='mnist',
    version=tfds.core.Version('3.0.1'),
    data_dir=str(folder),
    module_name='',
  )
  writer = tfds.core.SequentialWriter(
    tfds.core.DatasetInfo(builder=identity, features=features),
    max_examples_per_shard=60_000,
    overwrite=False,
  )
  images = np.random.default_rng(0).integers(256, size=(10, 28, 28, 1))
  encoded = [tf.io.encode_png(i.astype(np.uint8)).numpy() for i in images]

  def examples(labels):
    return [{'image': io.BytesIO(encoded[k]), 'label': k} for k in labels]

  # The benchmark validates on the last 10,000 of the training split.
  all_classes = [k % 10 for k in range(10_000)]
  writer.initialize_splits(['train', 'test'])
  writer.add_examples({'train': examples([3] * 50_000 + all_classes)})
  writer.add_examples({'test': examples(all_classes)})
  writer.close_all()
  return data_dir


def run(
  mnist, tmp_path, submission, *extra, program=('-m', 'submission_runner')
):
  """Run the benchmark's runner in a process of its own."""
  flags = [
    '--workload=mnist',
    '--framework=pytorch',
    f'--submission_path=submissions/{submission}/submission.py',
    f'--data_dir={mnist}',
    f'--experiment_dir={tmp_path}',
    f'--max_global_steps={STEPS}',
    '--rng_seed=7',
    *extra,
  ]
  if '--tuning_ruleset=self' not in extra:
    flags.append(f'--tuning_search_space={support.search_space(submission)}')
  environment = {
    **os.environ,
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'WANDB_MODE': 'disabled',
    # A machine with devices must give the same test.
    'CUDA_VISIBLE_DEVICES': '',
  }
  return subprocess.run(
    [sys.executable, *program, *flags],
    cwd=support.ROOT,
    env=environment,
    capture_output=True,
    text=True,
    stdin=subprocess.DEVNULL,
  )


def trial(tmp_path, name):
  return pathlib.Path(tmp_path) / name / 'mnist_pytorch' / 'trial_1'


def checkpoint(tmp_path, name, step=STEPS):
  return torch.load(trial(tmp_path, name) / f'checkpoint_{step}')


def evaluations(tmp_path, name):
  with open(trial(tmp_path, name) / 'eval_measurements.csv') as file:
    return list(csv.DictReader(file))
