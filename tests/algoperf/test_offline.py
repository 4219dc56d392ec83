"""Checkpoints that AlgoPerf has written, averaged and swept afterwards."""

import csv
import os
import subprocess
import sys

import algoperf_mnist as host
import algoperf_support as support
import numpy as np
import pytest
import torch
from algoperf_batches import make_batch

from lab.offline import batch_norm, workload_loader
from lab.offline.__main__ import main
from lab.offline.readers import Checkpoint

pytestmark = support.MARKS

STEPS = (20, 40, 60)
# Evaluations are due by the clock; here at fixed steps. The runner looks once
# more, before it starts.
PROGRAM = f"""
from absl import app
import submission_runner
from algoperf.workloads.mnist.workload import BaseMnistWorkload

steps = -1
def period(self):
  global steps
  steps += 1
  return 0.0 if steps in {STEPS} else float('inf')

BaseMnistWorkload.eval_period_time_sec = property(period)
app.run(submission_runner.main)
"""

mnist = host.mnist


@pytest.fixture(scope='module')
def trial(mnist, tmp_path_factory):
  """A trial of the benchmark's runner, with a checkpoint at each of STEPS."""
  folder = tmp_path_factory.mktemp('runs')
  done = host.run(
    mnist, folder, 'nadamw_lawa', '--experiment_name=x',
    '--torch_compile=False', program=('-c', PROGRAM),
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  return host.trial(folder, 'x')


def weights(trial, step, evaluated=False):
  """Weights of a checkpoint: raw, or those that were evaluated."""
  content = torch.load(trial / f'checkpoint_{step}')
  raw = content['optimizer_state']['averager']['raw']
  state = content['model_params']
  return state if evaluated else state | raw


@pytest.mark.parametrize('evaluated', [False, True])
def test_averages_of_its_checkpoints_are_of_raw_weights_unless_asked(
  evaluated, trial, tmp_path
):
  out = tmp_path / 'avg.safetensors'
  assert not main(
    ['average', '--checkpoints', f'{trial}/checkpoint_*', '--scheme', 'lawa',
     '--window', '3', '--output', str(out), '--weights',
     'evaluated' if evaluated else 'raw']
  )  # fmt: skip
  samples = [weights(trial, step, evaluated) for step in STEPS]
  with Checkpoint(str(out)) as found:
    assert set(found.layout) == set(samples[0])
    for name in samples[0]:
      expected = (samples[0][name] + samples[1][name] + samples[2][name]) / 3
      assert torch.equal(found.tensor(name), expected)
  raw, averaged = weights(trial, 60), weights(trial, 60, evaluated=True)
  assert not any(torch.equal(raw[name], averaged[name]) for name in raw)


def test_a_sweep_says_what_the_workload_says(trial, mnist, tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'lab.offline', 'sweep', '--run', str(trial),
     '--workload', 'mnist', '--data_dir', str(mnist), '--windows', '1,2',
     '--decays', '0.5', '--output_dir', str(tmp_path)],
    cwd=support.ROOT,
    env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3', 'CUDA_VISIBLE_DEVICES': ''},
    capture_output=True,
    text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  with open(tmp_path / 'sweep.csv') as file:
    rows = list(csv.DictReader(file))
  assert [int(float(row['global_step'])) for row in rows] == [*STEPS] * 3
  table = {
    (r['scheme'], r['window'] or r['decay'], int(float(r['global_step']))): r
    for r in rows
  }
  samples = [weights(trial, step) for step in STEPS]
  wanted = {
    ('lawa', '1', 40): (0, 1, 0),
    ('lawa', '2', 60): (0, 1 / 2, 1 / 2),
    # The first sample counts like the others.
    ('ema', '0.5', 60): (1 / 7, 2 / 7, 4 / 7),
  }
  workload = workload_loader.find_workload('mnist')
  model, _ = workload.init_model_fn(np.array([3, 4]))
  for key, shares in wanted.items():
    average = {
      name: sum(w * s[name] for w, s in zip(shares, samples, strict=True))
      for name in samples[0]
    }
    model.load_state_dict(average)
    direct = workload.eval_model(
      workload.eval_batch_size, model, None, np.array([5, 6]), str(mnist),
      None, 0,
    )  # fmt: skip
    for metric in ('validation/loss', 'test/loss', 'validation/accuracy'):
      # float32 sums in another order; the same images in the same batches.
      found = float(table[key][metric])
      assert found == pytest.approx(direct[metric], rel=1e-6), (key, metric)
  assert len({row['validation/loss'] for row in rows}) == 7
  # The run's own columns, and its clock.
  own = host.evaluations(trial.parents[2], trial.parts[-3])
  assert list(rows[0])[-len(own[0]) :] == list(own[0])
  assert [float(row['score']) for row in rows[:3]] == [
    float(row['score']) for row in own
  ]


def batches(name, numbers):
  """Batches by number, each with its own seed for dropout."""
  for number in numbers:
    torch.manual_seed(number)
    yield make_batch(name, seed=number)


@pytest.mark.parametrize(
  'name', ['cifar', 'librispeech_conformer', 'librispeech_deepspeech']
)
def test_recomputed_statistics_are_means_also_after_an_evaluation(name):
  # Evaluation makes the benchmark keep momenta elsewhere, and put them back.
  spec = support.quiet_import('algoperf.spec')
  workload = support.make_workload(name)
  model, state = workload.init_model_fn(np.array([0, 1]))
  layers = batch_norm.norms(model)
  assert layers
  found = []
  for numbers in ((1,), (2,), (1, 2)):
    with torch.no_grad():
      workload.model_fn(
        model, make_batch(name), state, spec.ForwardPassMode.EVAL,
        np.array([0, 1]), update_batch_norm=False,
      )  # fmt: skip
    kept = [dict(vars(layer)) for layer in layers]
    batch_norm.recompute(
      workload, model, state, batches(name, numbers), len(numbers), [0, 1]
    )
    for layer, before in zip(layers, kept, strict=True):
      assert layer.momentum == before['momentum']
      assert vars(layer).get('momentum_backup') == before.get('momentum_backup')
    found.append(
      [(n.running_mean.clone(), n.running_var.clone()) for n in layers]
    )
  for first, second, both in zip(*found, strict=True):
    for a, b, c in zip(first, second, both, strict=True):
      # One rounding more than the mean of two has.
      torch.testing.assert_close(c, (a + b) / 2, rtol=1e-5, atol=1e-6)
