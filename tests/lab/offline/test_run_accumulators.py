"""Post-hoc accumulators that the runner keeps, and averages made from them."""

import json
import os
import pathlib
import subprocess
import sys

import accumulator_ranks
import fakes
import gloo
import pytest
import torch

from lab.core import checkpoint_files, checksums, light_files
from lab.core.errors import InputError
from lab.offline import posthoc, run_accumulators
from lab.offline.readers import Checkpoint
from lab.run import light_checkpoints, runner
from lab.run.distributed import Context
from lab.run.trial import TrialRun
from weightavg.schemes import Polynomial

ROOT = pathlib.Path(__file__).parents[3]
STEPS = 20
EVERY = 3


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A working directory in which the fake workload can be run."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  fakes.register(monkeypatch)
  (tmp_path / 'space.json').write_text(json.dumps(fakes.POINTS))
  return tmp_path


@pytest.fixture
def averaging(folder, monkeypatch):
  """The same with EMA of a project's submission, under a name it knows."""
  monkeypatch.chdir(ROOT)
  fakes.register(monkeypatch, 'click_dlrm')
  space = ROOT / 'tuning_search_spaces' / 'nadamw_ema.json'
  # 1 % of twenty steps would be the last sample alone.
  points = [json.loads(space.read_text())[0] | {'averaging_horizon': 0.5}]
  (folder / 'space.json').write_text(json.dumps(points))
  return {
    'submission_path': 'submissions/nadamw_ema/submission.py',
    'workload': 'click_dlrm',
    'tuning_search_space': str(folder / 'space.json'),
    'experiment_dir': str(folder / 'runs'),
  }


def trial(name, root='runs', workload='fake'):
  return pathlib.Path(root, name, f'{workload}_pytorch', 'trial_1')


def snapshots(directory):
  """Every snapshot of a trial by its name, as bytes."""
  found = (directory / run_accumulators.FOLDER).glob('posthoc_*.safetensors')
  return {path.name: path.read_bytes() for path in found}


class KillSwitch:
  """Kills a run after the update of a step, once."""

  def __init__(self, monkeypatch, step):
    original, self.step = TrialRun._update, step

    def dying(run, *arguments):
      original(run, *arguments)
      if run.state.global_step == self.step:
        self.step = None
        raise fakes.Killed

    monkeypatch.setattr(TrialRun, '_update', dying)


@pytest.mark.parametrize('killed_at', [4, 5, 7, 10, 19])
def test_a_resumed_run_writes_the_same_snapshots(
  killed_at, averaging, folder, monkeypatch
):
  # An average is in the model at each checkpoint: they come at 5, 10, ...
  options = averaging | {'posthoc_every': EVERY}
  fakes.run(folder, experiment_name='whole', **options)
  KillSwitch(monkeypatch, killed_at)
  with pytest.raises(fakes.Killed):
    fakes.run(folder, experiment_name='cut', **options)
  directory = trial('cut', folder / 'runs', 'click_dlrm')
  resume = killed_at >= 5
  fakes.run(
    folder,
    experiment_name='cut',
    resume_last_run=resume,
    overwrite=not resume,
    **options,
  )
  expected = snapshots(trial('whole', folder / 'runs', 'click_dlrm'))
  assert sorted(expected) == sorted(
    f'posthoc_{i}_step_{step}.safetensors'
    for i in (0, 1)
    for step in range(EVERY, STEPS + 1, EVERY)
  )
  assert snapshots(directory) == expected


def test_snapshots_are_of_raw_weights_whatever_is_evaluated(averaging, folder):
  options = averaging | {'posthoc_every': 2, 'save_every': 1}
  fakes.run(folder, **options)
  directory = trial('x', folder / 'runs', 'click_dlrm')
  samples = []
  for step in range(1, STEPS + 1):
    with Checkpoint(light_files.path_of(str(directory), step)) as checkpoint:
      samples.append(checkpoint.tensor('head.weight').double())
  for i, sigma in enumerate(posthoc.SIGMAS):
    scheme = Polynomial(posthoc.power_of_sigma(sigma))
    for step in (2, 10, 12, 20):
      exact = sum(
        w * x for w, x in zip(scheme.weights(step), samples, strict=False)
      )
      name = f'posthoc_{i}_step_{step}.safetensors'
      with Checkpoint(str(directory / 'posthoc' / name)) as found:
        # Twenty float32 updates of values below one.
        torch.testing.assert_close(
          found.tensor('head.weight').double(), exact, rtol=1e-5, atol=1e-6
        )


def test_accumulators_change_nothing_else_in_a_run(averaging, folder):
  plain = fakes.run(folder, experiment_name='plain', **averaging)
  tracked = fakes.run(
    folder, experiment_name='tracked', posthoc_every=1, **averaging
  )
  assert not fakes.differences(
    plain.model_params.state_dict(), tracked.model_params.state_dict()
  )
  directory = trial('plain', folder / 'runs', 'click_dlrm')
  assert not (directory / 'posthoc').exists()


@pytest.mark.parametrize('keep_all', [True, False])
def test_states_live_as_long_as_their_checkpoints(keep_all, folder):
  fakes.run(folder, posthoc_every=7, save_intermediate_checkpoints=keep_all)
  names = sorted(p.name for p in (trial('x') / 'posthoc').glob('state_*'))
  steps = (5, 10, 15, 20) if keep_all else (20,)
  assert names == sorted(f'state_{step}.pt' for step in steps)


def test_without_checkpoints_there_are_no_states(folder):
  fakes.run(folder, posthoc_every=7, save_checkpoints=False)
  assert not list((trial('x') / 'posthoc').glob('state_*'))
  assert run_accumulators.snapshot_steps(str(trial('x'))) == [7, 14]


def test_keep_bounds_the_steps_of_snapshots(folder):
  fakes.run(folder, posthoc_every=2, keep=3)
  assert run_accumulators.snapshot_steps(str(trial('x'))) == [16, 18, 20]
  assert len(snapshots(trial('x'))) == 6


def test_an_earlier_checkpoint_can_be_gone_on_from(folder):
  options = {'posthoc_every': EVERY}
  fakes.run(folder, **options)
  expected = snapshots(trial('x'))
  for step in (15, 20):
    (trial('x') / f'checkpoint_{step}').unlink()
  for path in (trial('x') / 'posthoc').glob('posthoc_*_step_18*'):
    path.unlink()
  fakes.run(folder, resume_last_run=True, **options)
  assert snapshots(trial('x')) == expected


def error_of(folder, **changes):
  """Run what must fail, check that it left no trace; the error's text."""
  chosen = fakes.settings(folder, **changes)
  before = fakes.tree(folder)
  with pytest.raises(InputError) as info:
    runner.run(chosen, Context(), {})
  assert fakes.tree(folder) == before
  assert '\n' not in str(info.value)
  return str(info.value)


def test_more_steps_between_snapshots_than_there_are_is_refused(folder):
  message = error_of(folder, posthoc_every=STEPS + 1)
  assert message == 'Invalid posthoc_every=21. Must be in [1, 20], the budget.'


def test_missing_safetensors_is_said_before_the_run(folder, monkeypatch):
  monkeypatch.setattr(
    light_checkpoints.importlib.util, 'find_spec', lambda name: None
  )
  for flag in ('posthoc_every', 'save_every'):
    message = error_of(folder, **{flag: 5})
    assert "need safetensors. Run: pip install -e '.[lab]'" in message


def gone(path, other):
  path.unlink()


def flipped(path, other):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def truncated(path, other):
  path.write_bytes(path.read_bytes()[:-100])
  os.remove(checksums.path_of(str(path)))


def of_another_step(path, other):
  path.write_bytes(other.read_bytes())
  os.remove(checksums.path_of(str(path)))


def of_another_model(path, other):
  content = torch.load(path, weights_only=True)
  for averager in content['averagers']:
    for name, tensor in averager['buffers'][0].items():
      averager['buffers'][0][name] = torch.cat([tensor, tensor])
  torch.save(content, path)
  os.remove(checksums.path_of(str(path)))


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (gone, 'is missing'),
    (flipped, 'does not match its checksum'),
    (truncated, 'truncated or damaged'),
    (of_another_step, 'of step 15'),
    (of_another_model, 'has shape'),
  ],
)
def test_a_state_that_cannot_be_used_is_named(spoil, message, folder):
  fakes.run(folder, posthoc_every=5)
  directory = str(trial('x'))
  path = pathlib.Path(run_accumulators.state_path(directory, STEPS))
  spoil(path, pathlib.Path(run_accumulators.state_path(directory, 15)))
  # An older checkpoint with its state would be used instead.
  for step in (5, 10, 15):
    os.remove(checkpoint_files.path_of(directory, step))
  found = error_of(folder, posthoc_every=5, resume_last_run=True)
  assert message in found
  assert str(path) in found
  # Without the flag the run goes on.
  fakes.run(folder, resume_last_run=True)


def test_a_full_disk_leaves_no_state(folder, monkeypatch):
  def full(content, file):
    file.write(b'half')
    raise OSError(28, 'No space left on device')

  model = torch.nn.Linear(2, 2)
  accumulators = run_accumulators.RunAccumulators(model, str(folder), every=1)
  accumulators.update(1)
  before = fakes.tree(folder)
  monkeypatch.setattr(run_accumulators.torch, 'save', full)
  with pytest.raises(InputError, match=r'state_1\.pt: No space left'):
    accumulators.save_state(1)
  assert fakes.tree(folder) == before


@pytest.mark.slow
def test_rank_0_alone_keeps_accumulators_of_two_ranks(folder):
  path = fakes.write_submission(folder)
  gloo.run_on_ranks(2, accumulator_ranks.whole_and_cut, folder, path, EVERY)
  whole, cut = snapshots(trial('whole')), snapshots(trial('cut'))
  assert len(whole) == 2 * (STEPS // EVERY)
  assert cut == whole


def command(*arguments):
  """A command as a user gives it; what it printed."""
  done = subprocess.run(
    [sys.executable, '-m', *map(str, arguments)],
    cwd=ROOT,
    env={**os.environ, 'OMP_NUM_THREADS': '1'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_from_a_run_to_a_post_hoc_average_by_commands_alone(tmp_path):
  command(
    'lab.run', '--workload=click_dlrm', '--skip_evals',
    '--submission_path=submissions/nadamw/submission.py',
    '--tuning_search_space=tuning_search_spaces/local/click_dlrm.json',
    f'--experiment_dir={tmp_path}', '--experiment_name=x', '--rng_seed=0',
    '--max_global_steps=60', '--save_every=1', '--posthoc_every=6',
  )  # fmt: skip
  directory = trial('x', tmp_path, 'click_dlrm')
  printed = command(
    'lab.offline', 'average', '--scheme', 'posthoc', '--sigma_rel', '0.1,0.15',
    '--checkpoints', directory / 'posthoc/posthoc_*',
    '--output', tmp_path / 'ema_{sigma_rel}.safetensors',
  )  # fmt: skip
  assert printed.count('relative error') == 2
  samples = []
  for step in range(1, 61):
    with Checkpoint(light_files.path_of(str(directory), step)) as checkpoint:
      samples.append({n: checkpoint.tensor(n) for n in checkpoint.layout})
  # Distances are measured from the last weights. The first width is a tracked
  # one: 1e-5 are float32; the other one was 5e-4 off when this was written.
  for sigma, tolerance in ((0.1, 1e-4), (0.15, 2e-3)):
    scheme = Polynomial(posthoc.power_of_sigma(sigma))
    weights = scheme.weights(60)
    gap = distance = 0.0
    with Checkpoint(str(tmp_path / f'ema_{sigma}.safetensors')) as found:
      assert set(found.layout) == set(samples[-1])
      for key, last in samples[-1].items():
        exact = sum(
          w * s[key].double() for w, s in zip(weights, samples, strict=True)
        )
        gap += (found.tensor(key) - exact).square().sum().item()
        distance += (last - exact).square().sum().item()
    assert gap**0.5 < tolerance * distance**0.5
