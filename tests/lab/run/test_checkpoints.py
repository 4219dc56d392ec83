"""Checkpoint files: written whole or not at all."""

import os
import pathlib
import sys
import zipfile

import pytest
import torch
from torch import nn

from lab.core import checkpoint_files, checksums
from lab.core.errors import InputError
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
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(torch, 'save', fail)
  with pytest.raises(InputError, match=r'No space left .* The last .*int_3\.'):
    checkpoints.save(state, str(tmp_path), keep_all=False)
  with open(path, 'rb') as file:
    assert file.read() == before
  assert sorted(os.listdir(tmp_path)) == [
    '.checkpoint_3.sha256',
    'checkpoint_3',
  ]


def test_what_a_killed_save_leaves_is_removed(tmp_path):
  checkpoints.save(make(), str(tmp_path))
  (tmp_path / checkpoints.TEMPORARY).write_bytes(b'half')
  (tmp_path / '.checkpoint_4.sha256').write_text('of a file that never came')
  # As former versions have named it.
  (tmp_path / '.checkpoint_4.sha256.temporary').write_text('half')
  unfinished = '0123456789abcdef.temporary'
  (tmp_path / f'.checkpoint_4.sha256.{unfinished}').write_text('half')
  (tmp_path / f'measurements.csv.{unfinished}').write_text('half')
  for name in ('weights', 'posthoc'):
    (tmp_path / name).mkdir()
    (tmp_path / name / f'.state_4.pt.sha256.{unfinished}').write_text('half')
  checkpoints.remove_temporary(str(tmp_path))
  assert sorted(p.name for p in tmp_path.rglob('*')) == [
    '.checkpoint_3.sha256',
    'checkpoint_3',
    'posthoc',
    'weights',
  ]


def fault(directory):
  return lambda step: checkpoints.damage(
    checkpoint_files.path_of(str(directory), step)
  )


@pytest.mark.parametrize('with_checksum', [True, False])
@pytest.mark.parametrize('position', [0.01, 0.3, 0.6])
def test_a_flipped_bit_is_found(tmp_path, with_checksum, position):
  checkpoints.save(make(1), str(tmp_path))
  path = pathlib.Path(checkpoints.save(make(2), str(tmp_path)))
  content = bytearray(path.read_bytes())
  place = int(position * len(content))
  if not with_checksum:
    # The archive's own CRC-32s cover tensors and the pickle.
    os.remove(checksums.path_of(str(path)))
    with zipfile.ZipFile(path) as archive:
      entries = [e for e in archive.infolist() if '/data/' in e.filename]
      entry = max(entries, key=lambda e: e.file_size)
      tensor = archive.read(entry)
    place = content.index(tensor) + int(position * len(tensor))
  content[place] ^= 1
  path.write_bytes(content)
  found, skipped = checkpoints.newest(str(tmp_path), fault(tmp_path))
  assert found == str(tmp_path / 'checkpoint_1')
  assert len(skipped) == 1
  assert str(path) in skipped[0]


def test_a_checkpoint_without_a_checksum_is_taken(tmp_path):
  path = checkpoints.save(make(2), str(tmp_path))
  os.remove(checksums.path_of(path))
  assert checkpoints.newest(str(tmp_path), fault(tmp_path)) == (path, [])


def test_a_checkpoint_is_valid_at_every_moment_of_its_replacement(tmp_path):
  """The former content, or the new one, with the checksum that is there."""
  path = checkpoints.save(make(1), str(tmp_path))
  seen = []

  watching = []

  def look(event, arguments):
    is_change = event in ('os.rename', 'os.remove', 'open')
    if watching and is_change and str(tmp_path) in str(arguments[0]):
      watching.clear()  # the look opens files itself
      seen.append(checkpoints.damage(path))
      watching.append(True)

  # No hook can be removed: this one does nothing after the test.
  sys.addaudithook(look)
  watching.append(True)
  state = make(1)
  state.eval_results = [(1, {'validation/loss': 0.25})]
  checkpoints.save(state, str(tmp_path))
  watching.clear()
  assert len(seen) > 3
  assert set(seen) == {None}


def test_earlier_checkpoints_go_only_once_the_new_one_is_there(
  tmp_path, monkeypatch
):
  checkpoints.save(make(1), str(tmp_path), keep_all=False)
  seen = []
  replace = os.replace

  def watch(source, target):
    if not target.endswith('.sha256'):
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
