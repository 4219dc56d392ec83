"""`lab.launch` with the benchmark: a kill while it writes a checkpoint."""

import csv
import os
import subprocess
import sys

import algoperf_mnist as host
import algoperf_support as support

from lab.launch import recovery

pytestmark = support.MARKS
mnist = host.mnist


def launch(root, experiments, *extra):
  words = [
    *(sys.executable, '-m', 'lab.launch', '--submissions=nadamw_ema'),
    *('--workloads=mnist', '--studies=1', '--trials=1'),
    *(f'--max_global_steps={host.STEPS}', '--processes_per_node=0'),
    *(f'--data_dir={root}', f'--experiment_dir={experiments}'),
    *extra,
  ]
  environment = {
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'CUDA_VISIBLE_DEVICES': '',
    'WANDB_MODE': 'disabled',
  }
  return subprocess.run(
    [*words, '--', '--torch_compile=False'],
    cwd=support.ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )


def steps_of(path):
  with open(path, newline='') as file:
    return [int(float(row['global_step'])) for row in csv.DictReader(file)]


def test_a_run_resumes_from_the_checkpoint_before_the_incomplete_one(
  mnist, tmp_path
):
  root, experiments = tmp_path / 'data', tmp_path / 'runs'
  root.mkdir()
  (root / 'MNIST').symlink_to(mnist)
  first = launch(root, experiments)
  assert first.returncode == 0, first.stdout + first.stderr
  assert 'The others are billed at most 0.0 hours' in first.stdout
  name = 'nadamw_ema/study_0/mnist_pytorch/trial_1'
  trial = experiments / name
  # Evaluations are due by the clock, so a slow machine has more of them.
  before, end = recovery.complete_steps(trial)
  assert before < end == host.STEPS

  # The kill came while the last one was written.
  last = trial / f'checkpoint_{host.STEPS}'
  last.write_bytes(last.read_bytes()[:-100])
  measurements = trial / 'measurements.csv'
  lines = measurements.read_text().splitlines(keepends=True)
  measurements.write_text(''.join(lines[:-1]))
  shown = launch(root, experiments, '--status')
  assert f'{last.name} incomplete, resumes from step {before}' in shown.stdout

  second = launch(root, experiments)
  assert second.returncode == 0, second.stdout + second.stderr
  assert (trial / f'broken_{last.name}').exists()
  assert recovery.complete_steps(trial)[-1] == host.STEPS
  # No step is measured twice.
  steps = steps_of(trial / 'eval_measurements.csv')
  assert steps == sorted(set(steps))
  assert {before, host.STEPS} <= set(steps)
  assert '1 finished' in launch(root, experiments, '--status').stdout
