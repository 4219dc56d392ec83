"""Submissions in JAX on every workload of the benchmark that a CPU bears.

Real models and losses, small random batches. Three steps, an evaluation, a
checkpoint by the benchmark's own code right after `prepare_for_eval`, two more
steps; then the same two steps from the checkpoint alone, bit for bit.
"""

import gc

import algoperf_support as support
import numpy as np
import pytest

pytestmark = support.MARKS

STEPS = 3
# auto keeps another submission's average and computes losses: it stands for
# all. Every submission runs on workloads of seconds. At 1.0 cifar, which is not
# scored, returns its parameters as the running statistics.
SMALL = ('mnist', 'ogbg')
AT_AN_AVERAGE = ('nadamw_primal_jax', 'nadamw_schedule_free_jax')
CASES = [
  (submission, workload)
  for workload in support.WORKLOADS
  if workload != 'cifar'
  for submission in support.JAX_SUBMISSIONS
  if workload in SMALL or submission == 'nadamw_auto_jax'
]


@pytest.fixture(autouse=True)
def freed():
  import jax

  yield
  gc.collect()
  jax.clear_caches()


def start(submission, workload):
  import algoperf_jax

  batches = [
    algoperf_jax.make_batch(workload, seed=step) for step in range(STEPS + 2)
  ]
  changes = {}
  if 'auto' in submission:
    changes = {'averaging_candidates': 'ema 0.01'}
  return algoperf_jax.Run(submission, workload, batches, **changes)


def copied(tree):
  import jax

  return jax.tree.map(np.array, tree)


def assert_equal(a, b):
  import jax

  jax.tree.map(np.testing.assert_array_equal, a, b)


def sample(run, submission):
  """Return the sample of a step: weights and running statistics.

  Where training takes place at the average, that is z, and the statistics of y
  are shown with it.
  """
  if submission in AT_AN_AVERAGE:
    return run.state[0].train.optimizer.z
  return run.params, run.model_state


def shown_of(run, submission):
  if submission in AT_AN_AVERAGE:
    return run.params
  return run.params, run.model_state


def coefficients(submission, count):
  """Return the weights of `count` samples, one a step, horizon five samples."""
  if submission == 'nadamw_schedule_free_jax':
    # A linear warm-up: rates 1e-10, 1, 2, ...
    squares = [(j or 1e-10) ** 2 for j in range(count)]
    return [s / sum(squares) for s in squares]
  if 'lawa' in submission:
    return [1 / count] * count
  if submission == 'nadamw_jax':
    return [0.0] * (count - 1) + [1.0]
  # 3 % of 500 steps, each of which is a sample.
  decay = 1 - 1 / 15 if submission in AT_AN_AVERAGE else 0.8
  weights = [decay ** (count - 1 - j) for j in range(count)]
  return [w / sum(weights) for w in weights]


@pytest.mark.parametrize(('submission', 'workload'), CASES)
def test_submission_trains_evaluates_and_resumes(
  submission, workload, tmp_path
):
  import jax

  run = start(submission, workload)
  samples = []
  for _ in range(STEPS):
    run.step()
    samples.append(copied(sample(run, submission)))
  raw = samples[-1]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(raw))
  run.prepare_for_eval()
  shown = copied(shown_of(run, submission))
  weights = coefficients(submission, STEPS)
  jax.tree.map(
    # Float32 sums of three numbers, and rounding of weights of any size.
    lambda value, *each: np.testing.assert_allclose(
      value,
      sum(w * x.astype(np.float64) for w, x in zip(weights, each, strict=True)),
      rtol=2e-6,
      atol=1e-6,
    ),
    shown,
    *samples,
  )
  outputs = jax.tree.leaves(run.evaluate())
  assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in outputs)

  run.save(tmp_path)
  for _ in range(2):
    run.step()
  after = copied(run.state[0].train)
  run.prepare_for_eval()
  shown_after = copied((run.params, run.model_state))
  del run
  resumed = start(submission, workload)
  resumed.restore(tmp_path)
  assert resumed.global_step == STEPS
  for _ in range(2):
    resumed.step()
  assert_equal(copied(resumed.state[0].train), after)
  resumed.prepare_for_eval()
  assert_equal(copied((resumed.params, resumed.model_state)), shown_after)


def test_cifars_running_statistics_are_refused():
  """The host's fault gives one line, at the first step."""
  run = start('nadamw_ema_jax', 'cifar')
  with pytest.raises(ValueError, match='Invalid model_state'):
    run.step()
