"""Bad input: one line that names it, status 1, nothing written or deleted."""

import json
import os
import pathlib
import subprocess
import sys

import fakes
import pytest
import torch

from lab.core import checksums
from lab.core.errors import InputError
from lab.run import runner
from lab.run.distributed import Context

SUPPORT = pathlib.Path(__file__).parents[2] / 'support'
DOUBLE = '[{"decay": 0.5, "decay": 0.6}]'


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  fakes.register(monkeypatch)
  (tmp_path / 'space.json').write_text(json.dumps(fakes.POINTS))
  return tmp_path


def error_of(folder, context=None, **changes):
  """Run what must fail, check that it left no trace; the error's text."""
  chosen = fakes.settings(folder, **changes)
  before = fakes.tree(folder)
  with pytest.raises(InputError) as info:
    runner.run(chosen, context or Context(), {})
  assert fakes.tree(folder) == before
  assert '\n' not in str(info.value)
  return str(info.value)


@pytest.mark.parametrize(
  ('changes', 'parts'),
  [
    ({'workload': 'nosuch'}, ['nosuch', 'click_dlrm', 'stdlib_lm']),
    ({'submission_path': 'no/such.py'}, ['no/such.py', 'existing .py file']),
    ({'submission_path': 'space.json'}, ['space.json', 'existing .py file']),
    ({'tuning_search_space': None}, ['external', 'tuning_search_space']),
    ({'tuning_search_space': 'no.json'}, ['no.json', 'No such file']),
    ({'tuning_ruleset': 'self'}, ['tuning_search_space', 'self']),
    ({'hparam_start_index': 1}, ['hparam_start_index=1', 'of 1 points']),
    ({'resume_last_run': True}, ['Nothing to resume', 'runs/x/fake_pytorch']),
    (
      {'resume_last_run': True, 'overwrite': True},
      ['--resume_last_run', '--overwrite'],
    ),
    ({'experiment_dir': 'space.json'}, ['space.json', 'writable directory']),
    ({'experiment_name': ''}, ["experiment_name=''", 'name of a folder']),
    ({'experiment_name': '../a'}, ["experiment_name='../a'", 'name of a']),
    ({'experiment_name': '/tmp'}, ["experiment_name='/tmp'", 'name of a']),
  ],
)
def test_flags(folder, changes, parts):
  message = error_of(folder, **changes)
  for part in parts:
    assert part in message


@pytest.mark.parametrize(
  ('content', 'parts'),
  [
    ('', ['space.json', 'JSON']),
    ('{"a": ', ['space.json', 'JSON']),
    ('[]', ['space.json', 'at least one point']),
    ('{}', ['space.json', 'at least one point']),
    ('3', ['space.json', 'list']),
    ('[3]', ['point 1 of space.json']),
    (DOUBLE, ['space.json', "'decay' is given twice"]),
    ('[{"a b": 1}]', ["'a b'", 'identifier']),
    ('[{"_a": 1}]', ["'_a'", 'underscore']),
    ('[{"class": 1}]', ["'class'", 'identifier']),
    ('[{"a": 1}, {"b": 1}]', ['point 2 of space.json', 'a, b', 'same keys']),
    ('{"a": 3}', ["range of 'a'", 'min, max and scaling']),
    ('{"a": {"min": 1, "max": 2}}', ["range of 'a'", 'scaling']),
    ('{"a": {"feasible_points": []}}', ["range of 'a'", 'at least one']),
    (
      '{"a": {"min": 1, "max": 2, "scaling": "exp"}}',
      ["scaling='exp'", 'linear or log'],
    ),
    (
      '{"a": {"min": 3, "max": 2, "scaling": "log"}}',
      ['min=3, max=2', 'min <= max'],
    ),
    ('{"a": {"min": 0, "max": 2, "scaling": "log"}}', ['min=0', 'positive']),
    (
      '{"a": {"min": true, "max": 2, "scaling": "log"}}',
      ['min=True', 'numbers'],
    ),
    ('[{"learning_rate": 20, "decay": 0.5}]', ['learning_rate=20', '(0, 10)']),
    ('[{"learning_rate": 1, "decay": "x"}]', ["decay='x'", 'float']),
    ('[{"learning_rate": 1}]', ['trial_1', "missing key 'decay'"]),
  ],
)
def test_search_spaces(folder, content, parts):
  (folder / 'space.json').write_text(content)
  message = error_of(folder, num_tuning_trials=2)
  for part in parts:
    assert part in message


def test_a_bad_last_point_is_found_before_the_first_trial(folder):
  points = [*fakes.POINTS, {'learning_rate': -1, 'decay': 0.5}]
  (folder / 'space.json').write_text(json.dumps(points))
  message = error_of(folder, num_tuning_trials=3)
  assert 'trial_3' in message
  assert 'learning_rate=-1' in message


@pytest.mark.parametrize('missing', ['update_params', 'get_batch_size'])
def test_submission_without_a_function(folder, missing):
  text = fakes.SUBMISSION.replace(f'def {missing}', 'def other')
  path = fakes.write_submission(folder, text)
  message = error_of(folder, submission_path=path)
  assert path in message
  assert f'{missing} not found' in message


@pytest.mark.parametrize('text', ['import nosuchmodule', 'def f(:'])
def test_submission_that_cannot_be_imported(folder, text):
  path = fakes.write_submission(folder, text)
  assert f'Cannot import submission_path={path}' in error_of(
    folder, submission_path=path
  )


def test_submission_in_a_folder_that_is_no_module_name(folder):
  (folder / 'a-b').mkdir()
  (folder / 'a-b' / 'submission.py').write_text(fakes.SUBMISSION)
  message = error_of(folder, submission_path='a-b/submission.py')
  assert 'identifiers' in message


def test_submission_that_does_not_know_the_workload(folder, monkeypatch):
  fakes.register(monkeypatch, 'odd')
  message = error_of(folder, workload='odd')
  assert 'no batch size for odd' in message


def test_a_variant_takes_the_batch_size_of_its_base(folder, monkeypatch):
  fakes.register(monkeypatch, 'fake_variant')
  state = fakes.run(folder, workload='fake_variant', max_global_steps=1)
  assert state.global_step == 1


@pytest.mark.parametrize(
  ('attributes', 'part'),
  [({}, 'batch size 16'), ({'eval_batch_size': 66}, 'eval batch size 66')],
)
def test_batch_sizes_must_divide_among_the_ranks(
  folder, monkeypatch, attributes, part
):
  fakes.register(monkeypatch, **attributes)

  class Three(Context):
    def agree(self, error):
      if error:
        raise error

    def broadcast(self, value):
      return value

  ranks = 3 if not attributes else 4
  message = error_of(folder, Three(world_size=ranks))
  assert part in message
  assert f'number of processes, {ranks}' in message


@pytest.fixture
def finished(folder):
  """An experiment that has run; its first trial's directory."""
  fakes.run(folder)
  return folder / 'runs' / 'x' / 'fake_pytorch' / 'trial_1'


def test_an_experiment_that_exists(folder, finished):
  message = error_of(folder)
  assert 'runs/x/fake_pytorch exists' in message
  assert '--overwrite' in message
  assert '--resume_last_run' in message


@pytest.mark.parametrize('flag', ['overwrite', 'resume_last_run'])
def test_nothing_is_deleted_for_a_bad_point(folder, finished, flag):
  (folder / 'space.json').write_text('[{"learning_rate": -1, "decay": 0.1}]')
  (finished / 'hparams.json').write_text('{"learning_rate": -1, "decay": 0.1}')
  assert 'learning_rate=-1' in error_of(folder, **{flag: True})


def test_a_command_for_one_trial_leaves_the_others_alone(folder):
  def go(number, **changes):
    fakes.run(folder, **picked(number), **changes)
    return folder / f'runs/x/fake_pytorch/trial_{number}'

  def picked(number):
    return {
      'num_tuning_trials': 2,
      'hparam_start_index': number - 1,
      'hparam_end_index': number,
    }

  first = go(1, save_checkpoints=False)
  before = fakes.tree(first)
  second = go(2)
  written = fakes.tree(second)
  assert 'exists' in error_of(folder, **picked(2))
  assert 'exists' in error_of(folder, num_tuning_trials=2)
  go(2, overwrite=True)
  assert fakes.tree(second).keys() == written.keys()
  assert fakes.tree(second) != written
  assert fakes.tree(first) == before
  assert go(2, overwrite=True, save_checkpoints=False) == second
  assert not list(second.glob('checkpoint_*'))
  fakes.run(folder, overwrite=True)
  assert not second.exists()


def test_trials_of_other_commands_may_have_other_seeds(folder):
  one = {'num_tuning_trials': 2, 'hparam_end_index': 1}
  two = {'num_tuning_trials': 2, 'hparam_start_index': 1}
  fakes.run(folder, **one, rng_seed=3)
  fakes.run(folder, **two, rng_seed=4)
  for changes, seed in ((one, 3), (two, 4)):
    state = fakes.run(folder, **changes, rng_seed=None, resume_last_run=True)
    assert state.preemption_count == 1
    wrong = error_of(folder, **changes, rng_seed=5, resume_last_run=True)
    assert f'Must be {seed}' in wrong


def test_overwrite_of_a_file(folder):
  path = folder / 'runs' / 'x' / 'fake_pytorch'
  path.parent.mkdir(parents=True)
  path.write_text('a file')
  assert 'must be a directory' in error_of(folder, overwrite=True)


def test_resume_without_a_checkpoint(folder, finished):
  for path in finished.glob('checkpoint_*'):
    path.unlink()
  assert 'Nothing to resume' in error_of(folder, resume_last_run=True)


def test_resume_with_another_seed(folder, finished):
  message = error_of(folder, resume_last_run=True, rng_seed=7)
  assert 'rng_seed=7' in message
  assert 'Must be 0' in message


def test_resume_without_a_recorded_seed(folder, finished):
  first = finished / 'meta_data_0.json'
  fakes.run(folder, rng_seed=None, resume_last_run=True)
  # Damaged: the file before it has the seed, too.
  (finished / 'meta_data_1.json').write_text('{"rng_se')
  fakes.run(folder, rng_seed=None, resume_last_run=True)
  last = finished / 'meta_data_2.json'
  assert json.loads(last.read_text())['rng_seed'] == 0
  for path in (first, last):
    path.unlink()
  message = error_of(folder, rng_seed=None, resume_last_run=True)
  assert 'no meta_data_<n>.json in it has the seed. Give its' in message
  fakes.run(folder, rng_seed=0, resume_last_run=True)


def test_resume_with_another_submission(folder, finished):
  other = folder / 'other'
  other.mkdir()
  (other / 'submission.py').write_text(fakes.SUBMISSION)
  message = error_of(
    folder, resume_last_run=True, submission_path='other/submission.py'
  )
  assert 'checkpoint_20' in message
  assert 'not other.submission' in message


@pytest.mark.parametrize('kept', [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize('with_checksum', [True, False])
def test_truncated_checkpoints_are_skipped(
  folder, finished, kept, with_checksum, caplog
):
  for path in finished.glob('checkpoint_*'):
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    if not with_checksum:
      os.remove(checksums.path_of(str(path)))
  message = error_of(folder, resume_last_run=True)
  assert 'Nothing to resume: runs/x/fake_pytorch/trial_1/checkpoint_20' in (
    message
  )
  expected = 'not match its checksum' if with_checksum else 'truncated'
  assert expected in message
  # The newest one that is whole is used, and what was skipped is said.
  path = finished / 'checkpoint_10'
  fakes.run(folder, experiment_name='other')
  path.write_bytes(
    (folder / 'runs/other/fake_pytorch/trial_1/checkpoint_10').read_bytes()
  )
  (finished / '.checkpoint_10.sha256').unlink(missing_ok=True)
  state = fakes.run(folder, resume_last_run=True)
  assert state.preemption_count == 1
  assert state.global_step == 20
  said = [text for text in caplog.messages if text.startswith('Skipping')]
  assert [text.split(':')[0][-2:] for text in said] == ['20', '15']


@pytest.mark.parametrize(
  ('change', 'part'),
  [
    (lambda c: c.pop('train_state'), 'must hold the keys'),
    (lambda c: c['optimizer_state'].pop('average'), "['optimizer']"),
    (lambda c: c['model_params'].pop('head.bias'), 'head.bias'),
    (lambda c: c['model_params'].update(x=torch.ones(1)), 'Unexpected key'),
    (
      lambda c: c['model_params'].update({'head.bias': torch.ones(9)}),
      'size mismatch',
    ),
    (
      lambda c: c['optimizer_state']['average'].update(average=[]),
      'Invalid state',
    ),
  ],
)
def test_resume_from_a_foreign_checkpoint(folder, finished, change, part):
  path = finished / 'checkpoint_20'
  content = torch.load(path, weights_only=True)
  change(content)
  torch.save(content, path)
  os.remove(checksums.path_of(str(path)))
  message = error_of(folder, resume_last_run=True)
  assert 'checkpoint_20' in message
  assert part in message
  assert len(message) < 500


class RunsCode:
  """Writes a file when it is unpickled without restrictions."""

  def __reduce__(self):
    return open, ('written', 'w')


@pytest.mark.parametrize('content', [[1, 2], {'a': 1}, print, RunsCode()])
def test_resume_from_something_else(folder, finished, content):
  path = finished / 'checkpoint_20'
  torch.save(content, path)
  os.remove(checksums.path_of(str(path)))
  assert str(path.relative_to(folder)) in error_of(folder, resume_last_run=True)


def test_command_prints_one_line_and_exits_with_1(folder):
  arguments = {
    'workload': 'nosuch',
    'submission_path': fakes.write_submission(folder),
    'tuning_search_space': 'space.json',
    'experiment_dir': 'runs',
    'experiment_name': 'x',
  }
  before = fakes.tree(folder)
  done = subprocess.run(
    [
      sys.executable,
      SUPPORT / 'fakes.py',
      *(f'--{key}={value}' for key, value in arguments.items()),
    ],
    capture_output=True,
    text=True,
    env=fakes.environment(),
  )
  assert done.returncode == 1
  assert done.stdout == ''
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: Invalid workload='nosuch'. Must be one of ")
  assert fakes.tree(folder) == before
