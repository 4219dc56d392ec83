"""SIGTERM and SIGUSR1: the run saves, ends, and can be resumed exactly."""

import contextlib
import json
import os
import pathlib
import signal
import weakref

import fakes
import pytest
import torch
import torch.distributed as dist

from lab.core import checkpoint_files
from lab.core.errors import InputError
from lab.run import interruption, runner
from lab.run.distributed import Context
from lab.run.interruption import (
  CHECKPOINT_WRITTEN,
  Interrupted,
  Interruption,
)
from lab.run.validation import after_restart

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / 'space.json').write_text(json.dumps(fakes.POINTS))
  return tmp_path


def interrupted(folder, monkeypatch, number, moment, **changes):
  """Run until a signal arrives at a moment; the error that ends the run."""

  def on(self, name, step):
    if (name, step) == moment:
      os.kill(os.getpid(), number)

  fakes.register(monkeypatch, on=on)
  chosen = fakes.settings(folder, **changes)
  asked = Interruption()
  with asked.awaited(), pytest.raises(Interrupted) as info:
    runner.run(chosen, Context(), {}, asked)
  return info.value


def content(path):
  loaded = torch.load(path, weights_only=True)
  kept = ('model_params', 'optimizer_state', 'global_step')
  return {key: loaded[key] for key in kept}


@pytest.mark.parametrize('number', interruption.SIGNALS)
@pytest.mark.parametrize(
  ('moment', 'step'),
  [
    (('update', 7), 8),
    (('update', 0), 1),
    (('prepare', 10), 10),
    (('evaluate', 15), 15),
  ],
)
def test_the_step_is_finished_and_saved(
  folder, monkeypatch, number, moment, step
):
  error = interrupted(folder, monkeypatch, number, moment)
  trial = folder / 'runs/x/fake_pytorch/trial_1'
  assert error.status == os.EX_TEMPFAIL
  assert str(error) == (
    f'Stopped by {number.name} at step {step}. runs/x/fake_pytorch/trial_1/'
    f'checkpoint_{step} is written: use --resume_last_run to go on.'
  )
  assert checkpoint_files.steps(str(trial))[-1] == step
  fakes.register(monkeypatch)
  fakes.run(folder, resume_last_run=True)
  fakes.run(folder, experiment_name='whole')
  whole = folder / 'runs/whole/fake_pytorch/trial_1'
  a, b = content(trial / 'checkpoint_20'), content(whole / 'checkpoint_20')
  assert fakes.differences(a, b) == []
  for name in ('eval_measurements.csv', 'measurements.csv'):
    assert metrics(trial / name) == metrics(whole / name)


def metrics(path):
  """Rows without times and the number of the resumption."""
  lines = [line.split(',') for line in path.read_text().splitlines()]
  kept = [
    i
    for i, name in enumerate(lines[0])
    if '/' in name or name in ('loss', 'global_step')
  ]
  return [[line[i] for i in kept] for line in lines]


def test_the_status_tells_that_nothing_was_saved(folder, monkeypatch):
  error = interrupted(
    folder, monkeypatch, signal.SIGTERM, ('update', 3), save_checkpoints=False
  )
  assert error.status == 128 + signal.SIGTERM
  assert 'No checkpoint was asked for' in str(error)


def test_before_the_first_step_there_is_nothing_to_save(folder, monkeypatch):
  fakes.register(monkeypatch)
  asked = Interruption()
  asked.signal = signal.SIGTERM
  with pytest.raises(Interrupted) as info:
    runner.run(fakes.settings(folder), Context(), {}, asked)
  assert info.value.status == 128 + signal.SIGTERM
  assert str(info.value) == (
    'Stopped by SIGTERM at step 0. There is no checkpoint yet.'
  )


def test_a_second_signal_changes_nothing():
  asked = Interruption()
  with asked.awaited():
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
  assert asked.signal == signal.SIGUSR1
  assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_restart_leaves_experiments_of_others_alone(folder, monkeypatch):
  fakes.register(monkeypatch)
  fakes.run(folder)
  settings = fakes.settings(folder)
  monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
  monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'job')
  assert after_restart(settings, Context()) == settings


@pytest.mark.parametrize(
  ('error', 'status'),
  [
    (None, 0),
    (
      lambda: Interrupted(signal.SIGTERM, 5, 'checkpoint_5'),
      CHECKPOINT_WRITTEN,
    ),
    (lambda: InputError('Invalid x.'), 1),
  ],
)
def test_no_model_outlives_the_process_group(error, status, monkeypatch):
  """Otherwise its destructor frees the group, and may wait for ever."""
  models, gone = [], []

  def run(*arguments):
    model = torch.nn.Linear(1, 1)
    # Freed by cycles only, as DistributedDataParallel.
    model.own = (model,)
    models.append(weakref.ref(model))
    if error:
      raise error()

  monkeypatch.setattr(runner, 'run', run)
  monkeypatch.setattr(runner.validation, 'after_restart', lambda *given: None)
  monkeypatch.setattr(runner.lab.run.flags, 'settings', lambda: None)
  monkeypatch.setattr(dist, 'is_initialized', lambda: True)
  monkeypatch.setattr(
    dist, 'destroy_process_group', lambda: gone.append(models[0]() is None)
  )
  ended = contextlib.nullcontext() if not status else pytest.raises(SystemExit)
  with ended as end:
    runner._main(['python'])
  assert gone == [True]
  if status:
    assert end.value.code == status
