"""The runner on two gloo processes, as torchrun starts them."""

import functools
import json
import pathlib
import signal
import subprocess
import sys
import time

import ddp_scenarios
import fakes
import pytest
import torch

from lab.core import checkpoint_files

ROOT = pathlib.Path(__file__).parents[3]
SUPPORT = ROOT / 'tests' / 'support'
SUBMISSIONS = [
  'fake',
  *sorted(
    path.parent.name
    for path in ROOT.glob('submissions/*/submission.py')
    # Those in JAX have devices in place of ranks.
    if not path.parent.name.endswith('_jax')
  ),
]


def torchrun(script, *arguments):
  return [
    *(sys.executable, '-m', 'torch.distributed.run'),
    *('--standalone', '--nproc_per_node=2'),
    *map(str, (script, *arguments)),
  ]


# One of each kind: an average that watches and one that trains over either
# optimizer, and a choice.
QUICK = ['fake', 'nadamw_auto', 'nadamw_primal', 'shampoo_lawa']


def parameters(make):
  """Parameters of a test for all submissions, those of long runs marked so."""
  return [
    pytest.param(*values, marks=[pytest.mark.slow] * (name not in QUICK))
    for name in SUBMISSIONS
    for values in make(name)
  ]


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
  """A function: the folder with what the scenarios of a submission left.

  Those of all quick ones, and of all others, run in one pair of processes.
  """

  @functools.cache
  def run(names):
    folder = tmp_path_factory.mktemp('ddp')
    package = folder / 'fake_package'
    package.mkdir()
    (package / 'submission.py').write_text(fakes.SUBMISSION)
    done = subprocess.run(
      torchrun(SUPPORT / 'ddp_scenarios.py', folder, *names),
      capture_output=True,
      text=True,
      env=fakes.environment(),
    )
    assert done.returncode == 0, done.stderr
    return folder

  groups = [
    tuple(n for n in SUBMISSIONS if (n in QUICK) == is_quick)
    for is_quick in (True, False)
  ]
  return lambda name: run(groups[name not in QUICK])


def load(folder, name, experiment, rank):
  path = folder / f'{name}_{experiment}_{rank}.pt'
  return torch.load(path, weights_only=True)


@pytest.mark.parametrize('name', parameters(lambda name: [(name,)]))
def test_both_ranks_hold_the_same_weights(ran, name):
  for experiment in ('whole', *ddp_scenarios.cuts_of(name)):
    ranks = [load(ran(name), name, experiment, rank) for rank in (0, 1)]
    for content in ranks:
      # Each rank keeps BatchNorm statistics of its own batches.
      for key in [k for k in content['model'] if 'running' in k]:
        del content['model'][key]
    assert fakes.differences(*ranks) == []


@pytest.mark.parametrize(
  ('name', 'cut'),
  parameters(lambda name: [(name, cut) for cut in ddp_scenarios.cuts_of(name)]),
)
def test_resumed_run_equals_the_undisturbed_one(ran, name, cut):
  whole, resumed = (load(ran(name), name, kind, 0) for kind in ('whole', cut))
  assert fakes.differences(whole, resumed) == []
  # Averages, raw weights and the optimizer's state: what rank 0 saved.
  files = [
    *ran(name).glob(f'runs/{name}/whole/*/trial_1/checkpoint_20'),
    *ran(name).glob(f'runs/{name}/{cut}/*/trial_1/checkpoint_20'),
  ]
  states = [torch.load(file, weights_only=True) for file in files]
  assert len(states) == 2
  for key in ('model_params', 'optimizer_state', 'global_step'):
    assert fakes.differences(states[0][key], states[1][key]) == []


def test_only_rank_0_writes_and_both_ranks_read_its_files(ran):
  (trial,) = ran('fake').glob('runs/fake/whole/*/trial_1')
  evals = (trial / 'eval_measurements.csv').read_text().splitlines()
  assert len(evals) == 1 + 4
  assert checkpoint_files.steps(str(trial)) == [5, 10, 15, 20]
  assert int((ran('fake') / 'saves_0').read_text()) > 0
  assert int((ran('fake') / 'saves_1').read_text()) == 0


def test_an_error_of_one_rank_is_an_error_of_all(ran):
  messages = [(ran('fake') / f'error_{rank}').read_text() for rank in (0, 1)]
  assert messages == ['of rank 1'] * 2


def arguments(folder, **changes):
  values = {
    'workload': 'fake',
    'submission_path': fakes.write_submission(folder),
    'tuning_search_space': 'space.json',
    'experiment_dir': 'runs',
    'experiment_name': 'x',
    'rng_seed': 0,
    **changes,
  }
  return [f'--{key}={value}' for key, value in values.items()]


def test_bad_input_ends_all_ranks_with_one_line(tmp_path):
  (tmp_path / 'space.json').write_text('[]')
  done = subprocess.run(
    torchrun(SUPPORT / 'fakes.py', *arguments(tmp_path)),
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=fakes.environment(),
  )
  assert done.returncode == 1
  # torchrun adds lines of its own about a child that failed.
  assert done.stderr.count('error: Invalid tuning search space') == 1
  assert not (tmp_path / 'runs').exists()


@pytest.mark.slow
def test_a_pre_empted_job_saves_and_is_resumed_by_one_process(
  tmp_path, monkeypatch
):
  (tmp_path / 'space.json').write_text(json.dumps(fakes.POINTS))
  trial = tmp_path / 'runs/x/fake_pytorch/trial_1'
  # Never ends by itself.
  command = torchrun(
    SUPPORT / 'fakes.py', *arguments(tmp_path, max_global_steps=10**9)
  )
  with open(tmp_path / 'errors', 'w') as errors:
    process = subprocess.Popen(
      command, cwd=tmp_path, env=fakes.environment(), stderr=errors
    )
    try:
      while len(checkpoint_files.steps(str(trial))) < 4:
        assert process.poll() is None
        time.sleep(0.05)
    finally:
      # torchrun passes it on and waits for its children.
      process.send_signal(signal.SIGTERM)
      process.wait()
  saved = checkpoint_files.steps(str(trial))[-1]
  said = (tmp_path / 'errors').read_text()
  assert said.count(f'Stopped by SIGTERM at step {saved}.') == 1
  # torchrun kills a process that has not ended by itself after 30 s.
  assert 'forcefully' not in said, said
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  fakes.register(monkeypatch)
  last = saved + 7
  state = fakes.run(tmp_path, resume_last_run=True, max_global_steps=last)
  due = [n for n in range(saved + 1, last) if n % 5 == 0] + [last]
  assert checkpoint_files.steps(str(trial))[-len(due) :] == due
  assert len(state.eval_results) == saved // 5 + len(due)
