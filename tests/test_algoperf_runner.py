"""`submission_runner.py` itself on mnist, undisturbed and killed and resumed.

The images are made here, by tensorflow_datasets' own writer, in the layout that
the benchmark reads. All training images are equal: a resumed run starts its
input from the beginning, so that only then can it equal the undisturbed one.
"""

import csv
import io
import os
import pathlib
import signal
import subprocess
import sys

import algoperf_support as support
import numpy as np
import pytest
import torch

pytestmark = support.MARKS

STEPS = 60

# The step hint of mnist is 7,813, hence a sample every 16 steps. Evaluations
# are due by the clock; here at fixed steps, with the kill right after one.
KILLED = """
import os, signal
from absl import app, flags
import submission_runner
from algoperf.workloads.mnist.workload import BaseMnistWorkload

# The runner looks once more, before it starts.
steps = -1
def period(self):
  global steps
  steps += 1
  if steps == 42:
    os.kill(os.getpid(), signal.SIGKILL)
  return 0.0 if steps == 40 else float('inf')

BaseMnistWorkload.eval_period_time_sec = property(period)
app.run(submission_runner.main)
"""


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


def same(first, second):
  if torch.is_tensor(first):
    return torch.equal(first, second)
  if isinstance(first, dict):
    return first.keys() == second.keys() and all(
      same(first[key], second[key]) for key in first
    )
  if isinstance(first, (list, tuple)):
    return len(first) == len(second) and all(
      same(*pair) for pair in zip(first, second, strict=True)
    )
  return first == second


@pytest.mark.parametrize(
  ('submission', 'compiled'),
  [
    *((name, False) for name in support.SUBMISSIONS),
    # The runner's default: names in the checkpoint then carry `_orig_mod.`.
    ('nadamw_lawa', True),
  ],
)
def test_killed_and_resumed_run_equals_the_undisturbed_one(
  submission, compiled, mnist, tmp_path
):
  compile_flag = f'--torch_compile={compiled}'
  whole = run(
    mnist, tmp_path, submission, '--experiment_name=whole', compile_flag
  )
  assert whole.returncode == 0, whole.stderr[-3000:]
  killed = run(
    mnist,
    tmp_path,
    submission,
    '--experiment_name=killed',
    compile_flag,
    program=('-c', KILLED),
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
  resumed = run(
    mnist,
    tmp_path,
    submission,
    '--experiment_name=killed',
    '--resume_last_run',
    compile_flag,
  )
  assert resumed.returncode == 0, resumed.stderr[-3000:]

  # The benchmark evaluates after its first step; where the clock is slow, and
  # after a restart, also in between.
  for name, first in (('whole', 1), ('killed', 40)):
    steps = [int(row['global_step']) for row in evaluations(tmp_path, name)]
    assert (steps[0], steps[-1]) == (first, STEPS)
  assert (trial(tmp_path, 'killed') / 'meta_data_1.json').exists()
  expected = checkpoint(tmp_path, 'whole')
  actual = checkpoint(tmp_path, 'killed')
  assert actual['preemption_count'] == 1
  assert actual['global_step'] == expected['global_step'] == STEPS
  prefix = '_orig_mod.' if compiled else ''
  assert all(name.startswith(prefix) for name in expected['model_params'])
  assert same(actual['model_params'], expected['model_params'])
  assert same(actual['optimizer_state'], expected['optimizer_state'])
  last = evaluations(tmp_path, 'whole')[-1]
  again = evaluations(tmp_path, 'killed')[-1]
  for metric in ('validation/loss', 'test/accuracy', 'train/loss'):
    assert last[metric] == again[metric]
  assert_holds_the_average(submission, expected, prefix)


def assert_holds_the_average(submission, saved, prefix):
  """The saved model is the average that the saved averager stands for."""
  averager = saved['optimizer_state']['averager']
  scheme = support.averages_by(submission)
  if scheme == 'none':
    assert not averager['raw']
    return
  buffers = averager['buffers']
  assert averager['samples'] == STEPS // 16
  if scheme == 'auto':
    # The raw weights have no buffer; they are candidate 0, and shown as -1.
    assert len(buffers) == 4
    assert bool(averager['raw']) == (averager['selected'] > 0)
    buffers = buffers[averager['selected'] - 1 :][:1]
    for name in averager['raw']:
      shown = saved['model_params'][prefix + name]
      assert torch.equal(shown, buffers[0][name])
    return
  assert len(buffers) == (STEPS // 16 if scheme == 'lawa' else 1)
  for name, raw in averager['raw'].items():
    shown = saved['model_params'][prefix + name]
    mean = torch.stack([b[name].double() for b in buffers]).mean(dim=0)
    # float32 against a float64 mean of three samples: one rounding.
    torch.testing.assert_close(shown.double(), mean, rtol=1e-6, atol=1e-8)
    assert not torch.equal(shown, raw)


@pytest.mark.parametrize('submission', ['nadamw_lawa', 'nadamw_ema'])
def test_submission_runs_under_the_self_tuning_ruleset(
  submission, mnist, tmp_path
):
  result = run(
    mnist,
    tmp_path,
    submission,
    '--experiment_name=own',
    '--torch_compile=False',
    '--tuning_ruleset=self',
  )
  assert result.returncode == 0, result.stderr[-3000:]
  averager = checkpoint(tmp_path, 'own')['optimizer_state']['averager']
  # 1.5 times the step hint: 0.2 % of it are 23 steps.
  assert averager['recipe']['every'] == 23
  assert averager['samples'] == STEPS // 23
