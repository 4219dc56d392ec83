"""The local runner: order of calls, logs, budget, resuming."""

import json

import fakes
import pytest
import torch

from lab import runner
from lab.distributed import Context
from lab.settings import Settings


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / 'space.json').write_text(json.dumps(fakes.POINTS))
  return tmp_path


def settings(folder, **changes):
  return Settings(
    **{
      'workload': fakes.NAME,
      'submission_path': fakes.write_submission(folder),
      'tuning_search_space': 'space.json',
      'experiment_dir': 'runs',
      'experiment_name': 'x',
      'rng_seed': 0,
      **changes,
    }
  )


def run(folder, **changes):
  return runner.run(settings(folder, **changes), Context(), {})


def test_run(folder, monkeypatch):
  fakes.register(monkeypatch)
  state = run(folder)[0]
  assert state.global_step == 20
