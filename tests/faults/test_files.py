"""Checkpoints that are damaged, a full disk, a read-only directory."""

import json
import os
import pathlib
import random
import shutil
import zlib

import fakes
import fault_runs
import pytest
import torch
from fault_runs import Case

from lab.core import checkpoint_files, checksums
from lab.core.errors import InputError
from lab.run import checkpoints

long_form = pytest.mark.faults
STEPS = (5, 10, 15, 20)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An empty working directory that the tiny workload's runs go to."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  fakes.register(monkeypatch)
  (tmp_path / 'space.json').write_text(json.dumps(fakes.POINTS))
  return tmp_path


def trial_of(folder, name):
  return folder / 'runs' / name / 'fake_pytorch' / 'trial_1'


def truncate(path, rng, first):
  content = path.read_bytes()
  path.write_bytes(content[: rng.randrange(len(content))])


def flip(path, rng, first):
  content = bytearray(path.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


def zero(path, rng, first):
  content = bytearray(path.read_bytes())
  begin = rng.randrange(len(content))
  length = min(4096, len(content) - begin)
  content[begin : begin + length] = bytes(length)
  path.write_bytes(content)


def lengthen(path, rng, first):
  with open(path, 'ab') as file:
    file.write(rng.randbytes(rng.randint(1, 5000)))


def replace(path, rng, first):
  path.write_bytes(first)


def delete(path, rng, first):
  path.unlink()


def to_directory(path, rng, first):
  path.unlink()
  path.mkdir()


DAMAGES = (truncate, flip, zero, lengthen, replace, delete, to_directory)


def damaged_places(trial, rng):
  """Damage some checkpoints of a finished run; the damage done to each."""
  done = {}
  first = (trial / f'checkpoint_{STEPS[0]}').read_bytes()
  for step in rng.sample(STEPS, rng.randint(1, 4)):
    path = trial / f'checkpoint_{step}'
    done[step] = rng.choice(DAMAGES)
    before = path.read_bytes()
    done[step](path, rng, first)
    # A zeroed block of zeros, the first replaced by itself.
    if path.is_file() and path.read_bytes() == before:
      del done[step]
  return done


@pytest.mark.parametrize(
  'count',
  [
    pytest.param(15, id='short'),
    *(pytest.param(50, id=f'long-{i}', marks=long_form) for i in range(6)),
  ],
)
def test_the_newest_valid_checkpoint_is_used(
  folder, count, tally, request, caplog
):
  rng = random.Random(zlib.crc32(request.node.name.encode()))
  fakes.run(folder, experiment_name='whole')
  whole = trial_of(folder, 'whole')
  for number in range(count):
    name = f'cut_{number}'
    cut = trial_of(folder, name)
    shutil.copytree(whole, cut)
    damages = damaged_places(cut, rng)
    valid = [s for s in STEPS if s not in damages]
    caplog.clear()
    if valid:
      state = fakes.run(folder, experiment_name=name, resume_last_run=True)
      results = [
        checkpoints.read(str(t / 'checkpoint_20'), torch.device('cpu'))
        for t in (whole, cut)
      ]
      kept = ('model_params', 'optimizer_state', 'global_step')
      found = fakes.differences(*({k: r[k] for k in kept} for r in results))
      tally.check(found)
      tally.check([] if state.preemption_count == 1 else ['not resumed'])
      said = [m for m in caplog.messages if m.startswith('Skipping')]
      skipped = [
        step
        for step, damage in damages.items()
        if step > valid[-1] and damage is not delete
      ]
      named = [s for s in skipped if any(f'_{s}: ' in m for m in said)]
      tally.check([] if named == skipped else [f'{skipped} skipped, {said}'])
      assert len(said) == len(skipped)
      # The damaged files are kept aside.
      aside = {int(p.name.split('_')[-1]) for p in cut.glob('broken_*')}
      tally.check([] if aside == set(skipped) else [f'{aside} kept aside'])
    else:
      before = fakes.tree(cut)
      with pytest.raises(InputError, match='Nothing to resume') as info:
        fakes.run(folder, experiment_name=name, resume_last_run=True)
      assert '\n' not in str(info.value)
      tally.check([] if fakes.tree(cut) == before else ['a file was changed'])
    for damage in damages.values():
      tally.add('corruptions', damage.__name__)
    shutil.rmtree(cut.parents[1])


@pytest.mark.parametrize(
  'count',
  [
    pytest.param(10, id='short'),
    pytest.param(100, id='long', marks=long_form),
  ],
)
def test_damaged_measurements_do_not_stop_a_run(folder, count, tally, request):
  """Whole rows are kept, and the file that was there is kept aside."""
  rng = random.Random(zlib.crc32(request.node.name.encode()))
  fakes.run(folder, experiment_name='whole')
  whole = trial_of(folder, 'whole')
  for number in range(count):
    name = f'cut_{number}'
    cut = trial_of(folder, name)
    shutil.copytree(whole, cut)
    file = rng.choice(('measurements.csv', 'eval_measurements.csv'))
    path = cut / file
    damage = rng.choice((truncate, flip, zero))
    damage(path, rng, cut)
    damaged = path.read_bytes()
    state = fakes.run(folder, experiment_name=name, resume_last_run=True)
    assert state.global_step == 20
    aside = path.with_name(f'{file}.damaged')
    if aside.exists():
      tally.check([] if aside.read_bytes() == damaged else [file])
    assert b'\0' not in path.read_bytes()
    tally.add('corruptions', f'{damage.__name__} {file}')
    shutil.rmtree(cut.parents[1])


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  return fault_runs.Server(tmp_path_factory.mktemp('said'))


@pytest.fixture
def disk():
  """A small file system of its own."""
  try:
    with fault_runs.mounted('640k') as folder:
      yield folder
  except OSError as error:
    pytest.skip(f'cannot mount a file system: {error}')


# The error alone, after the lines of the log, which begin with their level.
def error_of(said):
  lines = said.splitlines()
  assert 'Traceback' not in said, said
  errors = [line for line in lines if line.startswith('error: ')]
  assert errors == lines[-1:], said
  return errors[0]


@pytest.mark.parametrize(
  'case',
  [
    pytest.param(Case('nadamw_lawa', 'device'), id='short'),
    *(
      pytest.param(
        Case(name, fault_runs.placements(name)[0]), id=name, marks=long_form
      )
      for name in fault_runs.submissions()
    ),
  ],
)
def test_a_full_disk_ends_with_one_line_and_loses_nothing(
  case, server, disk, tmp_path, tally
):
  whole = tmp_path / 'whole'
  status, said = server.run(case.arguments(whole))
  assert status == 0, said
  # Fill the disk but for some of what the run writes.
  needed = sum(p.stat().st_size for p in whole.rglob('*') if p.is_file())
  rng = random.Random(0)
  for number in range(3):
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    ballast = disk / 'ballast'
    wanted = int(needed * rng.uniform(0.2, 0.7))
    ballast.write_bytes(bytes(max(0, free - wanted)))
    status, said = server.run(case.arguments(disk / 'run'))
    assert status == 1, said
    assert 'No space left on device' in error_of(said)
    trial = case.trial(disk / 'run')
    steps = checkpoint_files.steps(str(trial))
    broken = [
      reason
      for step in steps
      if (
        reason := checkpoints.damage(
          checkpoint_files.path_of(str(trial), step), case.framework == 'jax'
        )
      )
    ]
    tally.check(broken)
    ballast.unlink()
    # As much as the whole run needs is free again.
    after = tmp_path / f'after_{number}'
    if (disk / 'run').exists():
      shutil.move(disk / 'run', after)
    status, said = server.run(fault_runs.resumed(case, after))
    assert status == 0, said
    tally.check(fault_runs.losses(case, whole, after))
    tally.add('corruptions', 'full disk')


def test_a_directory_that_becomes_read_only(server, disk, tmp_path):
  case = Case('nadamw_ema', 'device')
  whole, watch = tmp_path / 'whole', tmp_path / 'windows.json'
  server.run(case.arguments(whole), watch=str(watch))
  arguments = case.arguments(disk / 'run')
  # Killed while it writes its third checkpoint.
  begin, end = json.loads(watch.read_text())['writing'][2]
  status, _ = server.run(arguments, kill_at=(begin + end) // 2)
  assert status == -9
  before = fakes.tree(disk)
  fault_runs.remount(disk, 'ro')
  for flags in ('--resume_last_run', '--overwrite'):
    status, said = server.run([*arguments, flags])
    assert status == 1, said
    assert 'not a writable directory' in error_of(said)
  assert fakes.tree(disk) == before
  fault_runs.remount(disk, 'rw')
  status, said = server.run([*arguments, '--resume_last_run'])
  assert status == 0, said
  assert fault_runs.losses(case, whole, disk / 'run') == []


def test_nothing_is_deleted_before_its_successor_is_whole(folder, monkeypatch):
  """A full disk with --nosave_intermediate_checkpoints leaves the last one."""
  save, saves = torch.save, []

  def full(content, file, *args):
    saves.append(content['global_step'])
    if saves[-1] == 15:
      file.write(b'half')
      raise OSError(28, 'No space left on device')
    return save(content, file, *args)

  monkeypatch.setattr(torch, 'save', full)
  with pytest.raises(Exception, match='checkpoint_15: No space left on device'):
    fakes.run(folder, save_intermediate_checkpoints=False)
  trial = trial_of(folder, 'x')
  assert checkpoint_files.steps(str(trial)) == [10]
  assert checksums.known(str(trial / 'checkpoint_10'))
  assert [p.name for p in pathlib.Path(trial).glob('.*')] == [
    '.checkpoint_10.sha256'
  ]
