"""`submission_runner.py --framework=jax` on mnist, killed and resumed.

All training images are equal, as for `test_runner.py`. The host cannot resume
in JAX: its fault is mended in the process that resumes.
"""

import signal

import algoperf_mnist as host
import algoperf_support as support
import numpy as np
import pytest

pytestmark = support.MARKS
mnist = host.mnist

JAX = '--framework=jax'
# Evaluations are due by the clock; here at a fixed step, with the kill after.
KILLED = """
import os, signal
from absl import app
import submission_runner
from algoperf.workloads.mnist.workload import BaseMnistWorkload

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
RESUMED = """
import sys
sys.path.insert(0, 'tests/support')
from absl import app
import submission_runner
import algoperf_jax

with algoperf_jax.restorable():
  app.run(submission_runner.main)
"""


def trial(tmp_path, name):
  return tmp_path / name / 'mnist_jax' / 'trial_1'


def checkpoint(tmp_path, name):
  from flax.training import checkpoints

  folder = trial(tmp_path, name)
  return checkpoints.restore_checkpoint(str(folder), None, step=host.STEPS)


@pytest.mark.parametrize(
  'submission', ['nadamw_ema_jax', 'nadamw_auto_jax', 'nadamw_primal_jax']
)
def test_a_killed_run_resumes_and_equals_the_undisturbed_one(
  mnist, tmp_path, submission
):
  import jax

  def run(name, *extra, **program):
    return host.run(
      mnist,
      tmp_path,
      submission,
      JAX,
      f'--experiment_name={name}',
      *extra,
      **program,
    )

  undisturbed = run('undisturbed')
  assert undisturbed.returncode == 0, undisturbed.stderr[-2000:]
  killed = run('killed', program=('-c', KILLED))
  assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
  saved = {path.name for path in trial(tmp_path, 'killed').iterdir()}
  assert 'checkpoint_40' in saved
  resumed = run('killed', '--resume_last_run', program=('-c', RESUMED))
  assert resumed.returncode == 0, resumed.stderr[-2000:]
  expected, found = (
    checkpoint(tmp_path, name) for name in ('undisturbed', 'killed')
  )
  assert found['global_step'] == expected['global_step'] == host.STEPS
  # What is trained, and its averages. auto has chosen once more, at step 40.
  jax.tree.map(
    np.testing.assert_array_equal,
    found['optimizer_state']['train'],
    expected['optimizer_state']['train'],
  )
  # The average is shown, and it is not the raw weights.
  raw = expected['optimizer_state']['train']['params']
  pairs = zip(
    jax.tree.leaves(raw), jax.tree.leaves(expected['model_params']), strict=True
  )
  if 'auto' not in submission:
    jax.tree.map(
      np.testing.assert_array_equal,
      found['model_params'],
      expected['model_params'],
    )
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
