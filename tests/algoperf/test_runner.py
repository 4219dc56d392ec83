"""`submission_runner.py` itself on mnist, undisturbed and killed and resumed.

The images are made here, by tensorflow_datasets' own writer, in the layout that
the benchmark reads. All training images are equal: a resumed run starts its
input from the beginning, so that only then can it equal the undisturbed one.
"""

import csv
import signal

import algoperf_mnist as host
import algoperf_support as support
import pytest
import torch
from algoperf_mnist import STEPS, checkpoint, evaluations, run, trial

pytestmark = support.MARKS
mnist = host.mnist

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
  if scheme in support.TRAINS_AT_AVERAGE:
    assert averager['samples'] == STEPS
    assert averager['raw']
    for name, y in averager['raw'].items():
      # y = mu x + (1 - mu) z with mu = 0.9; float32 against float64.
      x = (y.double() - 0.1 * buffers[0][name].double()) / 0.9
      shown = saved['model_params'][prefix + name]
      torch.testing.assert_close(shown.double(), x, rtol=1e-6, atol=1e-8)
      assert not torch.equal(shown, y)
    return
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


@pytest.mark.parametrize('submission', ['nadamw_lawa', 'shampoo_ema'])
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
  saved = checkpoint(tmp_path, 'own')
  state = saved['optimizer_state']
  # Not planned yet: 0.2 % of the step hint are 16 steps.
  assert state['averager']['recipe']['every'] == 16
  assert state['averager']['samples'] == STEPS // 16
  # Half as much time again as the workload's 60 s.
  assert state['clock']['seconds'] == 90.0
  assert state['clock']['step'] == STEPS


SHORT = """
from absl import app
import submission_runner
from algoperf.workloads.mnist.workload import BaseMnistWorkload

BaseMnistWorkload.step_hint = 1000
# A second is too short for 1,000 steps: the first one alone takes that long.
BaseMnistWorkload.max_allowed_runtime_sec = 1
# The runner stops at the first evaluation after the limit.
BaseMnistWorkload.eval_period_time_sec = float('inf')
app.run(submission_runner.main)
"""


def test_the_runner_is_planned_by_its_own_clock(mnist, tmp_path):
  flags = (
    '--experiment_name=own',
    '--torch_compile=False',
    '--tuning_ruleset=self',
    '--max_global_steps=260',
  )
  program = ('-c', SHORT)
  result = run(mnist, tmp_path, 'nadamw_auto', *flags, program=program)
  assert result.returncode == 0, result.stderr[-3000:]
  saved = checkpoint(tmp_path, 'own', step=260)
  clock = saved['optimizer_state']['clock']
  assert clock['step'] == 260
  assert clock['next_plan'] > 0
  assert clock['total'] < 1000
  # 0.2 % of what was planned.
  averager = saved['optimizer_state']['averager']
  assert averager['recipe']['every'] == max(1, round(0.002 * clock['total']))
  # The host has billed that much; the last step is not in it.
  billed = saved['train_state']['accumulated_submission_time']
  assert 0 < clock['elapsed'] < 1.01 * billed
  with open(trial(tmp_path, 'own') / 'measurements.csv') as file:
    planned = [row['planned_steps'] for row in csv.DictReader(file)]
  assert planned[-1] == '' or float(planned[-1]) == clock['total']
  assert any(planned)
