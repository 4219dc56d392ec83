"""Every submission on every PyTorch workload of the benchmark, on a CPU.

Real models and losses, small random batches. Three steps, an evaluation, a
checkpoint by the benchmark's own code right after `prepare_for_eval`, two more
steps; then the same two steps from the checkpoint alone, bit for bit.
"""

import gc

import algoperf_support as support
import pytest
import torch
from algoperf_batches import make_batch

pytestmark = support.MARKS

STEPS = 3
# Of the submissions that train at the average.
INTERPOLATION = 0.9


@pytest.fixture(autouse=True)
def freed():
  yield
  gc.collect()


def start(submission, workload, *, seed=0):
  return support.Run(
    support.load_submission(submission),
    support.make_workload(workload),
    support.hyperparameters(submission),
    [make_batch(workload, seed=step) for step in range(STEPS + 2)],
    seed=seed,
  )


def expected_weights(scheme, argument, samples):
  """The average of the weights after each step, by the schemes' definition."""
  if scheme == 'none':
    return samples[-1]
  if scheme == 'lawa':
    return torch.stack(samples).mean(dim=0)
  average = samples[0]
  for k, sample in enumerate(samples[1:], start=2):
    if scheme in ('ema', 'primal'):
      # Horizon 1 %, a sample each 0.2 %: five samples, decay 1 - 1/5.
      decay = 1 - 0.002 / argument
      coefficient = (1 - decay) / (1 - decay**k)
    elif scheme == 'schedule_free':
      # Squares of the learning rates of a warm-up: 0, 1, 2, ...
      coefficient = (k - 1) ** 2 / sum(j**2 for j in range(k))
    else:
      coefficient = min(1.0, (argument + 1) / (argument + k))
    if scheme in support.TRAINS_AT_AVERAGE:
      # The model has y = mu x + (1 - mu) z, with x of this step: solve for z.
      share = INTERPOLATION * (1 - coefficient)
      sample = (sample - share * average) / (1 - share)
    average = average + coefficient * (sample - average)
  return average


@pytest.mark.parametrize('workload', support.WORKLOADS)
@pytest.mark.parametrize('submission', support.SUBMISSIONS)
def test_submission_trains_evaluates_and_resumes(
  submission, workload, tmp_path
):
  run = start(submission, workload)
  samples = []
  for _ in range(STEPS):
    run.step()
    # Half a million elements are enough to tell the schemes apart, and keep the
    # largest embeddings out of memory.
    samples.append(
      {
        name: parameter.detach().double()
        for name, parameter in run.model.named_parameters()
        if parameter.numel() <= 500_000
      }
    )
  raw = support.fingerprint(run.model)

  run.prepare_for_eval()
  names = {name for name, _ in run.model.named_parameters()}
  averaged = support.fingerprint(run.model)
  changed = {name for name in names if averaged[name] != raw[name]}
  scheme, argument = support.shown_by(submission, run.state)
  if scheme == 'none':
    assert not changed
  else:
    # A parameter that no gradient reaches stays what it was.
    assert len(changed) > 0.7 * len(names)
  for name, parameter in run.model.named_parameters():
    if name in samples[0]:
      expected = expected_weights(scheme, argument, [s[name] for s in samples])
      # Averages are kept in float32: a few roundings of 6e-8.
      torch.testing.assert_close(
        parameter.detach().double(), expected, rtol=1e-6, atol=1e-7
      )
  outputs = dict(support.tensors_of(run.evaluate()))
  assert all(bool(o.isfinite().all()) for o in outputs.values())
  run.save(tmp_path)

  run.step()
  next_step = support.fingerprint(run.model)
  assert next_step != raw
  run.step()
  last = support.fingerprint(run.model), support.state_fingerprint(run.state)
  del run
  gc.collect()  # an optimizer and its schedule hold each other

  resumed = start(submission, workload, seed=7)
  assert support.fingerprint(resumed.model) != raw
  assert resumed.restore(tmp_path) == 1
  assert resumed.global_step == STEPS
  assert support.fingerprint(resumed.model) == averaged
  restored = dict(support.tensors_of(resumed.evaluate()))
  assert all(torch.equal(restored[key], outputs[key]) for key in outputs)
  resumed.step()
  assert support.fingerprint(resumed.model) == next_step
  resumed.step()
  assert last == (
    support.fingerprint(resumed.model),
    support.state_fingerprint(resumed.state),
  )
