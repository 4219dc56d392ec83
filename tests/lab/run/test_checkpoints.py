"""Checkpoint files: written whole or not at all."""

import os

import pytest
import torch
from torch import nn

from lab.core import checkpoint_files
from lab.run import checkpoints
from lab.run.run_state import RunState


def make(step=3):
  model = nn.Linear(2, 2)
  optimizer = torch.optim.Adam(model.parameters())
  model(torch.ones(2)).sum().backward()
  optimizer.step()
  state = RunState({'optimizer': optimizer}, model, {'buffer': torch.ones(3)})
  state.global_step = step
  state.eval_results = [(step, {'validation/loss': 0.5})]
  return state


def test_a_state_comes_back_as_it_was(tmp_path):
  state, other = make(), make()
  path = checkpoints.save(state, str(tmp_path))
  checkpoints.restore(other, path, torch.device('cpu'))
  assert torch.equal(state.model_params.weight, other.model_params.weight)
  assert torch.equal(state.model_state['buffer'], other.model_state['buffer'])
  assert other.global_step == 3
  assert other.eval_results == state.eval_results
  assert other.train_state == state.train_state
  assert other.preemption_count == 1


def test_the_latest_is_the_one_of_the_largest_step(tmp_path):
  for step in (9, 10, 100, 20):
    checkpoints.save(make(step), str(tmp_path))
  (tmp_path / 'checkpoint_1000.bak').write_text('')
  assert checkpoint_files.steps(str(tmp_path)) == [9, 10, 20, 100]
  assert checkpoint_files.latest(str(tmp_path)) == str(
    tmp_path / 'checkpoint_100'
  )
  assert checkpoint_files.latest(str(tmp_path / 'missing')) is None


def test_a_failed_save_leaves_the_earlier_file(tmp_path, monkeypatch):
  state = make()
  path = checkpoints.save(state, str(tmp_path))
  with open(path, 'rb') as file:
    before = file.read()

  def fail(content, file):
    file.write(b'half')
    raise OSError('disk full')

  monkeypatch.setattr(torch, 'save', fail)
  with pytest.raises(OSError, match='disk full'):
    checkpoints.save(state, str(tmp_path), keep_all=False)
  with open(path, 'rb') as file:
    assert file.read() == before
  # No reader that looks for checkpoint_* finds the half file.
  assert checkpoint_files.steps(str(tmp_path)) == [3]
  checkpoints.remove_temporary(str(tmp_path))
  assert os.listdir(tmp_path) == ['checkpoint_3']


def test_earlier_checkpoints_go_only_once_the_new_one_is_there(
  tmp_path, monkeypatch
):
  checkpoints.save(make(1), str(tmp_path), keep_all=False)
  seen = []
  replace = os.replace

  def watch(source, target):
    seen.append(checkpoint_files.steps(str(tmp_path)))
    replace(source, target)

  monkeypatch.setattr(os, 'replace', watch)
  checkpoints.save(make(2), str(tmp_path), keep_all=False)
  assert seen == [[1]]
  assert checkpoint_files.steps(str(tmp_path)) == [2]


def test_files_hold_nothing_that_runs_code(tmp_path):
  path = checkpoints.save(make(), str(tmp_path))
  content = torch.load(path, weights_only=True)
  assert tuple(content) == checkpoints.KEYS


def test_the_wrapper_is_left_out_and_the_bare_module_handed_on(tmp_path):
  state = make()
  bare = state.model_params
  state.model_params = nn.DataParallel(bare)
  path = checkpoints.save(state, str(tmp_path))
  assert sorted(torch.load(path)['model_params']) == ['bias', 'weight']
  checkpoints.restore(state, path, torch.device('cpu'))
  assert state.model_params is bare
