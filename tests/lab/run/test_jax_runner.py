"""`lab.run --framework=jax`: trains as PyTorch does, and resumes exactly."""

import json
import os

import numpy as np
import pytest
from fakes import Killed
from jax_support import import_jax

from lab.core import checksums
from lab.core.errors import InputError
from lab.run import runner, validation
from lab.run.distributed import Context
from lab.run.settings import Settings

jax = import_jax('jax')
ROOT = import_jax('jax_host').ROOT
twins = import_jax('lab.workloads.jax')
POINT = {'learning_rate': 3e-3, 'warmup_factor': 0.0, 'averaging_every': 0.002}


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The repository as the working directory, a folder for runs."""
  monkeypatch.chdir(ROOT)
  return tmp_path


def run(folder, framework='jax', submission='nadamw_ema', **changes):
  space = folder / 'space.json'
  space.write_text(json.dumps([POINT]))
  suffix = '_jax' if framework == 'jax' else ''
  values = {
    'workload': 'stdlib_lm',
    'framework': framework,
    'submission_path': f'submissions/{submission}{suffix}/submission.py',
    'tuning_search_space': str(space),
    'experiment_dir': str(folder),
    'experiment_name': 'x',
    'rng_seed': 0,
    'max_global_steps': 6,
    'eval_every_steps': 3,
    'run_to_budget': True,
    **changes,
  }
  return runner.run(Settings(**values), Context(), values)[0]


def results(state):
  return [metrics['validation/loss'] for _, metrics in state.eval_results]


@pytest.mark.slow
@pytest.mark.parametrize('submission', ['nadamw_primal', 'nadamw_ema'])
def test_trains_as_pytorch_does(folder, submission):
  """Losses of averaged weights: the same numbers but for float32's rounding."""
  in_jax = results(run(folder, submission=submission))
  in_pytorch = results(run(folder, 'pytorch', submission))
  assert len(in_jax) == 2
  assert in_jax == pytest.approx(in_pytorch, rel=1e-4)
  assert in_jax[-1] < in_jax[0]
  directory = folder / 'x' / 'stdlib_lm_jax' / 'trial_1'
  assert (directory / 'eval_measurements.csv').exists()


@pytest.mark.slow
@pytest.mark.usefixtures('devices')
@pytest.mark.parametrize(
  'submission',
  # Two candidates of nadamw_auto are EMAs.
  ['nadamw_auto', 'nadamw_ema', 'nadamw_schedule_free'],
)
def test_resumes_bit_for_bit_on_several_devices(
  folder, monkeypatch, submission
):
  def go(**changes):
    return run(folder, submission=submission, **changes)

  undisturbed = go(experiment_name='undisturbed')

  class Fatal(type(twins.build_workload('stdlib_lm'))):
    def eval_model(self, *args):
      if args[-1] == 6:
        raise Killed
      return super().eval_model(*args)

  with monkeypatch.context() as patch:
    patch.setattr(twins, 'build_workload', lambda name: Fatal())
    with pytest.raises(Killed):
      go()
  resumed = go(resume_last_run=True)
  assert resumed.preemption_count == 1
  assert results(resumed) == results(undisturbed)
  jax.tree.map(
    np.testing.assert_array_equal,
    resumed.optimizer_state[0],
    undisturbed.optimizer_state[0],
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'framework': 'pytorch', 'submission_path': 'x'},
      "Invalid framework='pytorch'. Must be 'jax' for submissions/nadamw_jax",
    ),
    ({'workload': 'click_dlrm'}, "Invalid workload='click_dlrm'. Must be one"),
    ({'torch_compile': True}, 'Invalid torch_compile=True. It has no effect'),
    ({'save_every': 2}, 'Invalid save_every=2. It has no effect with framew'),
  ],
)
def test_bad_input_writes_nothing(folder, changes, message):
  path = 'submissions/nadamw_jax/submission.py'
  with pytest.raises(InputError, match=message):
    run(folder, **{**changes, 'submission_path': path})
  assert os.listdir(folder) == ['space.json']


def test_a_submission_of_pytorch_is_refused(folder):
  path = 'submissions/nadamw/submission.py'
  with pytest.raises(InputError, match=f"'jax'. Must be 'pytorch' for {path}"):
    run(folder, submission_path=path)
  assert os.listdir(folder) == ['space.json']


def test_several_processes_are_refused(folder):
  settings = Settings(
    workload='stdlib_lm',
    framework='jax',
    submission_path='submissions/nadamw_jax/submission.py',
    experiment_dir=str(folder),
    experiment_name='x',
  )
  context = Context(rank=0, world_size=2)
  with pytest.raises(InputError, match='Invalid number of processes 2'):
    validation.prepare(settings, context, 0)


@pytest.mark.slow
def test_files_that_are_no_checkpoints(folder):
  run(folder)
  trial = folder / 'x' / 'stdlib_lm_jax' / 'trial_1'
  last = trial / 'checkpoint_6'
  # Its checksum tells, and the checkpoint before it is used.
  last.write_bytes(last.read_bytes()[:1000])
  assert run(folder, resume_last_run=True).global_step == 6
  for path in trial.glob('checkpoint_*'):
    path.write_bytes(path.read_bytes()[:1000])
    os.remove(checksums.path_of(str(path)))
  with pytest.raises(InputError, match='6: truncated or not a checkpoint of a'):
    run(folder, resume_last_run=True)
