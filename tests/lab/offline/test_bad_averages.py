"""Averages of files that cannot be made: one line, nothing by halves."""

import errno
import io
import json
import pathlib
import subprocess
import sys

import pytest
import torch
from offline_files import average, states, write

from lab.core.errors import InputError
from lab.offline import averaging, plans, series, writers
from weightavg.schemes import Lawa

BAD = {
  'pattern': (
    ('*_*0', '--window', 1, '--step_pattern', '('),
    "Invalid step_pattern='('",
  ),
  'budget': (('*_*0', '--horizon', 0.5, '--budget', 0), 'Invalid budget=0.'),
  'negative budget': (
    ('*_*0', '--horizon', 0.5, '--budget', -5),
    'Invalid budget=-5. Must be in [1, 2^53].',
  ),
  'huge budget': (
    ('*_*0', '--horizon', 0.5, '--budget', 10**400),
    'Must be in [1, 2^53].',
  ),
  'budget alone': (
    ('*_*0', '--window', 1, '--budget', 5),
    'Invalid budget. It has no effect without horizon.',
  ),
  'two lengths': (
    ('*_*0', '--window', 1, '--horizon', 0.5),
    'Contradicting window and horizon. Give one of them.',
  ),
  'no match': (('none_*', '--window', 2), 'No checkpoint matches'),
  'window': (('*_*0', '--window', 7), 'window=7. At step 30 there are 3'),
  'at': (('*_*0', '--window', 2, '--at', 25), 'at=25. No checkpoint'),
  'useless': (('*_*0', '--decay', 0.5), 'Invalid decay. It has no effect'),
  'missing': (('*_*0',), 'Missing window or horizon'),
  'range': (('*_*0', '--window', 0), 'Invalid window=0. Must be in [1'),
  'every': (('*_*0', '--window', 1, '--every', 0), 'Invalid every=0'),
  'template': (('*_*0', '--window', '1,2'), 'must hold {window}'),
  'twice': (('*_*0', '--window', 1, '--at', '20,20'), 'same: scheme=lawa, win'),
  'key': (('*_*0', '--window', 1, '--key', 'a.b'), 'no state dict at'),
  'steps': (
    ('*_*0', '--window', 1, '--step_pattern', 'step_([0-9]+)'),
    'checkpoint_10 by the pattern',
  ),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_arguments_end_in_one_line_and_write_nothing(
  case, tmp_path, capsys
):
  write(tmp_path, states(3))
  (pattern, *rest), message = BAD[case]
  before = sorted(tmp_path.iterdir())
  out = tmp_path / 'avg.safetensors'
  assert average(
    str(tmp_path / pattern), '--scheme', 'lawa', *rest, '--output', out
  )
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1
  assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
  ('name', 'out', 'message'),
  [
    ('final.pt', 'avg.pt', 'Cannot read a step from the name'),
    ('c_1', 'none/avg.pt', 'none/avg.pt: No such file or directory'),
    ('c_1', 'avg.txt', 'Must end in .safetensors'),
  ],
)
def test_bad_names_end_in_one_line_and_write_nothing(
  name, out, message, tmp_path, capsys
):
  # A step is looked for in the directory's name too.
  folder = tmp_path / 'run'
  folder.mkdir()
  torch.save(states(1)[0], folder / name)
  assert average(
    str(folder / name), '--scheme', 'lawa', '--window', 1,
    '--output', folder / out,
  )  # fmt: skip
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1
  assert [p.name for p in folder.iterdir()] == [name]


@pytest.mark.parametrize('kept', [20, 100, -10])
def test_a_truncated_safetensors_is_named_and_fails_only_its_users(
  kept, tmp_path, capsys
):
  for i, state in enumerate(states(4), 1):
    writers.save(str(tmp_path / f's_{i}.safetensors'), state.items(), {})
  bad = tmp_path / 's_1.safetensors'
  bad.write_bytes(bad.read_bytes()[:kept])
  assert average(
    str(tmp_path / 's_*'), '--scheme', 'lawa', '--window', '2,4',
    '--output', tmp_path / 'avg_{window}.pt',
  )  # fmt: skip
  assert f'Cannot read {bad}: truncated' in capsys.readouterr().err
  assert [p.name for p in tmp_path.glob('*avg*')] == ['avg_2.pt']


def truncated(path):
  path.write_bytes(path.read_bytes()[:-200])


def shape(path):
  torch.save(states(1)[0] | {'layer.bias': torch.zeros(6)}, path)


def lacking(path):
  torch.save({k: v for k, v in states(1)[0].items() if 'bias' not in k}, path)


def infinite(path):
  torch.save(states(1)[0] | {'layer.bias': torch.full((5,), torch.inf)}, path)


class Code:
  def __reduce__(self):
    return print, ('code was run',)


def pickled(path):
  torch.save(states(1)[0] | {'extra': Code()}, path)


@pytest.mark.parametrize('last', [True, False])
@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (truncated, 'truncated'),
    (shape, "'layer.bias' has shape (6,)"),
    (lacking, "lacks the tensor 'layer.bias'"),
    (infinite, "'layer.bias' holds a NaN or an infinity"),
    (pickled, 'holds pickled code'),
  ],
)
def test_a_bad_file_is_named_and_fails_only_those_who_need_it(
  spoil, message, last, tmp_path, capsys
):
  pattern = write(tmp_path, states(4))
  bad, at = ('checkpoint_40', 30) if last else ('checkpoint_10', 40)
  spoil(tmp_path / bad)
  template = tmp_path / 'avg_{window}_{at}.safetensors'
  assert average(
    pattern, '--scheme', 'lawa', '--window', '2,4' if not last else '2',
    '--at', f'{at},40' if last else 40, '--output', template,
  )  # fmt: skip
  captured = capsys.readouterr()
  assert message in captured.err
  assert bad in captured.err
  assert 'code was run' not in captured.out
  made = sorted(p.name for p in tmp_path.iterdir() if 'check' not in p.name)
  assert made == [f'avg_2_{at}.safetensors']


@pytest.mark.parametrize('ending', ['safetensors', 'pt'])
def test_a_full_disk_leaves_the_other_outputs(
  ending, tmp_path, capsys, monkeypatch
):
  pattern = write(tmp_path, states(4))
  real = open

  class Full(io.FileIO):
    def write(self, data):
      if self.tell() > 100:
        raise OSError(errno.ENOSPC, 'No space left on device')
      return super().write(data)

  def opening(path, mode='r', **kwargs):
    if 'avg_3' in str(path):
      return Full(path, mode.replace('b', ''))
    return real(path, mode, **kwargs)

  monkeypatch.setattr(writers, 'open', opening, raising=False)
  assert average(
    pattern, '--scheme', 'lawa', '--window', '2,3',
    '--output', tmp_path / f'avg_{{window}}.{ending}',
  )  # fmt: skip
  error = capsys.readouterr().err
  assert 'No space left on device' in error
  assert f'avg_3.{ending}' in error
  made = sorted(p.name for p in tmp_path.iterdir() if 'check' not in p.name)
  assert made == [f'avg_2.{ending}']


def test_an_output_never_replaces_an_input(tmp_path, capsys):
  pattern = write(tmp_path, states(2))
  before = (tmp_path / 'checkpoint_20').read_bytes()
  assert average(
    pattern, '--scheme', 'lawa', '--window', 2,
    '--output', tmp_path / 'checkpoint_20',
  )  # fmt: skip
  assert 'one of the inputs' in capsys.readouterr().err
  assert (tmp_path / 'checkpoint_20').read_bytes() == before


def sharded(folder, steps):
  """Directories of one shard and its index; the pattern that finds them."""
  for step in steps:
    inner = folder / f'checkpoint_{step}'
    inner.mkdir()
    torch.save({'w': torch.ones(2)}, inner / 'part-1.bin')
    (inner / 'pytorch_model.bin.index.json').write_text(
      json.dumps({'weight_map': {'w': 'part-1.bin'}})
    )
  return str(folder / 'checkpoint_*')


@pytest.mark.parametrize(
  ('inner', 'name'),
  [
    ('', 'part-1.bin'),
    ('', 'model.safetensors'),
    ('/*.index.json', 'part-1.bin'),
    ('/*.index.json', 'model.safetensors'),
  ],
)
def test_an_output_never_replaces_a_part_of_an_input(
  inner, name, tmp_path, capsys
):
  pattern = sharded(tmp_path, [1, 2]) + inner
  folder = tmp_path / 'checkpoint_1'
  before = {p.name: p.read_bytes() for p in folder.iterdir()}
  assert average(
    pattern, '--scheme', 'lawa', '--window', 2, '--output', folder / name,
    '--step_pattern', 'checkpoint_([0-9]+)',
  )  # fmt: skip
  assert 'one of the inputs, or inside of one' in capsys.readouterr().err
  assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_tensor_that_becomes_complex_is_refused(tmp_path, capsys):
  pattern = write(
    tmp_path, [{'w': torch.ones(2, dtype=d)} for d in (int, torch.complex64)]
  )
  assert average(
    pattern, '--scheme', 'lawa', '--window', 2, '--output', tmp_path / 'a.pt'
  )
  assert "'w' is torch." in capsys.readouterr().err


def test_a_complex_average_keeps_its_imaginary_part(tmp_path, capsys):
  weight = torch.tensor([1.0 + 2.0j])
  pattern = write(tmp_path, [{'w': weight}] * 2)
  out = tmp_path / 'a.pt'
  command = [pattern, '--scheme', 'lawa', '--window', 2, '--output', out]
  assert average(*command, '--dtype', 'float32')
  error = capsys.readouterr().err
  assert "dtype torch.float32 of 'w', which is complex" in error
  assert not out.exists()
  assert not average(*command)
  assert torch.equal(torch.load(out)['state_dict']['w'], weight)


def test_two_writers_of_a_file_leave_the_whole_of_one(tmp_path):
  found = series.find([write(tmp_path, states(3))])
  out = str(tmp_path / 'a.safetensors')

  def written(window, progress=lambda passes: None):
    plan = plans.plan(found, Lawa(window), 2, 1)
    return averaging.write_averages(found, [(plan, out)], progress=progress)

  written(3)
  first = pathlib.Path(out).read_bytes()
  between = []

  def write_another(passes):
    if not between:
      between.append(written(2))
      assert pathlib.Path(out).read_bytes() != first

  assert [error for _, error in written(3, write_another)] == [None]
  assert [error for _, error in between[0]] == [None]
  assert pathlib.Path(out).read_bytes() == first


def test_an_interrupted_pass_leaves_nothing(tmp_path, monkeypatch):
  found = series.find([write(tmp_path, states(3))])
  plan = plans.plan(found, Lawa(3), 2, 1)

  def interrupted(passes):
    raise KeyboardInterrupt

  before = sorted(tmp_path.iterdir())
  with pytest.raises(KeyboardInterrupt):
    averaging.write_averages(
      found, [(plan, str(tmp_path / 'a.pt'))], progress=interrupted
    )
  assert sorted(tmp_path.iterdir()) == before


def test_uneven_distances_refuse_a_horizon(tmp_path):
  with pytest.raises(InputError, match='even distances'):
    _ = series.Series(('a', 'b', 'c'), (1, 2, 4)).spacing


def test_a_value_that_the_output_cannot_hold_is_refused(tmp_path, capsys):
  pattern = write(tmp_path, [{'w': torch.full((2,), 1e5)}] * 2)
  out = tmp_path / 'out.safetensors'
  assert average(
    pattern, '--scheme', 'lawa', '--window', 2,
    '--dtype', 'float16', '--output', out,
  )  # fmt: skip
  error = capsys.readouterr().err
  assert "Invalid dtype torch.float16 of 'w'." in error
  assert error.count('\n') == 1
  assert not out.exists()


def test_a_folder_of_checkpoints_is_no_checkpoint(tmp_path, capsys):
  folder = tmp_path / 'trial_1'
  folder.mkdir()
  write(folder, states(3))
  assert average(
    str(folder), '--scheme', 'lawa', '--window', 2,
    '--output', tmp_path / 'out.pt',
  )  # fmt: skip
  assert f'A folder of checkpoints is {folder}/*.' in capsys.readouterr().err


@pytest.mark.parametrize('ending', ['safetensors', 'pt'])
def test_averages_do_not_become_inputs(ending, tmp_path, capsys):
  pattern = write(tmp_path, states(3))
  lawa = ('--scheme', 'lawa', '--window', 2)
  for at in (20, 30):
    name = f'checkpoint_avg_{at + 5}.{ending}'
    assert not average(
      str(tmp_path / 'checkpoint_?0'), *lawa, '--at', at,
      '--output', tmp_path / name,
    )  # fmt: skip
  before = sorted(tmp_path.iterdir())
  capsys.readouterr()
  assert average(pattern, *lawa, '--output', tmp_path / 'again.pt')
  assert 'it is an average that this command has' in capsys.readouterr().err
  assert sorted(tmp_path.iterdir()) == before
  # On purpose: they alone.
  alone = str(tmp_path / 'checkpoint_avg_*')
  assert not average(alone, *lawa, '--output', tmp_path / 'again.pt')


TERMINATED = """
import os, runpy, signal, sys
from lab.offline import averaging
averaging._pass_over = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
sys.argv = ['lab.offline', *sys.argv[1:]]
runpy.run_module('lab.offline', run_name='__main__')
"""


def test_the_end_of_a_job_leaves_no_unfinished_file(tmp_path):
  pattern = write(tmp_path, states(2))
  before = sorted(tmp_path.iterdir())
  arguments = f'average --checkpoints {pattern} --scheme lawa --window 2'
  output = ('--output', str(tmp_path / 'out.pt'))
  done = subprocess.run(
    [sys.executable, '-c', TERMINATED, *arguments.split(), *output],
    check=False,
  )
  assert done.returncode == 143
  assert sorted(tmp_path.iterdir()) == before
