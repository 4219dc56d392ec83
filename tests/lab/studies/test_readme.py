"""What the README says is what the code has."""

import json
import pathlib
import re

from lab.studies import readme
from lab.workloads import WORKLOADS

ROOT = pathlib.Path(__file__).parents[3]
TEXT = (ROOT / 'README.md').read_text()


def test_tables_are_those_of_the_results_and_the_configuration():
  assert readme.filled(TEXT) == TEXT, 'run `make readme`'


def test_the_loop_of_the_readme_runs(capsys):
  (code,) = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
  exec(compile(code, 'README.md', 'exec'), {})
  assert len(capsys.readouterr().out.splitlines()) == 5


def test_every_submission_and_workload_is_in_the_readme():
  names = [p.parent.name for p in ROOT.glob('submissions/*/submission.py')]
  for name in [*names, *WORKLOADS]:
    assert f'| `{name}` |' in TEXT


def test_the_make_targets_of_the_readme_exist():
  makefile = (ROOT / 'Makefile').read_text()
  for target in re.findall(r'(?m)(?:`|^)make ([a-z][a-z-]*)', TEXT):
    assert f'\n{target}:' in makefile


def test_files_named_in_the_readme_exist():
  for path in re.findall(r'`((?:lab|weightavg|submissions)/[\w/.]+)`', TEXT):
    assert (ROOT / path).exists(), path


def test_misses_are_shown(monkeypatch):
  rows = {
    'swap/flat_copy': 0.07,
    'ema_update/flat_lerp': 1.05,
    'train_step/w/nadamw_ema': 1.004,
  }
  results = {
    name: {
      'ratio': ratio,
      'ours_ms': 1.0,
      'other_ms': None,
      'against': 'x',
      'repeats': 1,
    }
    for name, ratio in rows.items()
  }
  monkeypatch.setattr(
    readme, '_results', lambda name: json.loads(json.dumps(results))
  )
  lines = readme.performance().splitlines()[2:]
  assert lines[0].startswith(
    '| `ema_update/flat_lerp` | 1.050 | 1.1 | 1 |  | x |'
  )
  assert '| 0.05 **missed** |' in lines[1]
  assert '| 1.003 **missed** |' in lines[2]
