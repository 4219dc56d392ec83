"""No file makes a reader do more than read it, or refuse it in one line."""

import functools
import shutil
import zipfile
import zlib

import fuzz
import fuzz_targets
import hypothesis
import pytest
import torch

from lab.core.errors import InputError
from lab.offline.readers import Checkpoint
from lab.report import __main__ as report
from lab.report import figures

SHORT = 40
PARTS = 4


@functools.cache
def guard():
  return fuzz.Guard()


def parameters():
  for name, target in fuzz_targets.TARGETS.items():
    yield pytest.param(name, SHORT, 0, id=f'short-{name}')
    count = target.inputs_in_long_form // PARTS
    for part in range(PARTS):
      mark = pytest.mark.faults
      yield pytest.param(name, count, part, id=f'{name}-{part}', marks=mark)


@pytest.mark.parametrize(('name', 'count', 'part'), [*parameters()])
def test_a_reader_takes_or_refuses_any_file(
  name, count, part, tmp_path, monkeypatch, tally
):
  target = fuzz_targets.TARGETS[name]
  folder = tmp_path / 'input'
  folder.mkdir()
  # Reached by ../ only.
  shutil.copy(__file__, tmp_path / 'outside.safetensors')
  monkeypatch.chdir(tmp_path)
  seen = [0]

  @hypothesis.seed(zlib.crc32(f'{name} {part}'.encode()))
  @hypothesis.settings(
    max_examples=count,
    deadline=None,
    derandomize=False,
    database=None,
    phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(target.inputs)
  def check(content):
    seen[0] += 1
    fuzz_targets.run(guard(), target, folder, content)

  try:
    check()
  except BaseException:
    tally.lost += 1
    raise
  tally.add('inputs_fuzzed', name, seen[0])


def test_the_guard_sees_what_it_forbids(tmp_path):
  """A reader that leaves the folder, or runs a payload, fails."""
  outside = tmp_path / 'outside'
  outside.write_text('')
  folder = tmp_path / 'input'
  folder.mkdir()
  for forbidden in (
    outside.read_text,
    lambda: __import__('os').system('true'),
    lambda: b'x' * (200 << 20),
  ):
    target = fuzz_targets.Target('x', None, lambda path, f=forbidden: f(), 0)
    with pytest.raises(AssertionError):
      fuzz_targets.run(guard(), target, folder, b'')


def test_memory_bombs_are_refused(tmp_path):
  """A compressed archive, and a tensor that repeats its only element."""
  small = tmp_path / 'small_1.pt'
  torch.save({'w': torch.zeros(1 << 22)}, small)
  bomb = tmp_path / 'bomb_1.pt'
  with (
    zipfile.ZipFile(small) as old,
    zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as new,
  ):
    for entry in old.infolist():
      new.writestr(entry.filename, old.read(entry))
  assert bomb.stat().st_size < small.stat().st_size / 100
  with pytest.raises(InputError, match='is compressed'):
    Checkpoint(str(bomb))
  torch.save({'w': torch.ones(1).expand(1 << 40)}, bomb)
  with pytest.raises(InputError, match="'w' repeats its elements"):
    Checkpoint(str(bomb))
  torch.save({'w': bytearray(9)}, bomb)
  with pytest.raises(InputError, match='asks for a bytearray'):
    Checkpoint(str(bomb))


def test_a_shard_outside_the_folder_is_refused(tmp_path):
  for shard in ('../x.safetensors', '/etc/passwd', 'a/b.safetensors'):
    index = tmp_path / 'model.safetensors.index.json'
    index.write_text(f'{{"weight_map": {{"a": "{shard}"}}}}')
    with pytest.raises(InputError, match='Must be a file name'):
      Checkpoint(str(index))


HOSTILE = (
  '<script>alert(1)<\u2215script>',
  '<img src=x onerror=alert(1)>',
  '"><svg onload=alert(1)>',
  '{{ 7 * 7 }}{% raw %}',
  '<!--<script>',
)


def test_a_page_escapes_what_logs_contain(tmp_path, monkeypatch):
  """Names of submissions come from folders: anybody's."""
  monkeypatch.setattr(figures, 'save_all', lambda report, folder: [])
  for name in HOSTILE:
    trial = tmp_path / 'logs' / name / 'study_0' / 'wmt_pytorch' / 'trial_1'
    trial.mkdir(parents=True)
    (trial / 'eval_measurements.csv').write_bytes(fuzz_targets.CSV)
  report.main([str(tmp_path / 'logs'), '--output', str(tmp_path / 'report')])
  page = (tmp_path / 'report' / 'report.html').read_text()
  body = page.partition('</head>')[2]
  for name in HOSTILE:
    # Braces are nothing to a browser: they stay what they were.
    assert (name in body) == ('<' not in name)
  assert {p.name for p in tmp_path.iterdir()} == {'logs', 'report'}
