"""The files that an export takes along, and those that it refuses."""

import pytest

from lab.core.errors import InputError
from lab.export import exporter, imports


def repository(tmp_path, files):
  """A small repository whose submission imports what a test is about."""
  root = tmp_path / 'root'
  names = {
    'LICENSE': 'licence\n',
    'tuning_search_spaces/one.json': '[{"a": 1}]',
    'weightavg/__init__.py': '"""Package."""\n\nfrom weightavg.dead import x\n',
    'weightavg/dead.py': 'x = 1\n',
    'weightavg/used.py': 'import torch\n\ny = torch\n',
    'submissions/one/submission.py': '"""One."""\n\nfrom weightavg import used',
  }
  for name, text in (names | files).items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return root


def test_what_a_package_offers_to_others_stays_behind(tmp_path):
  files = exporter.contents('one', root=repository(tmp_path, {}))
  assert files['submission.py'] == '"""One."""\n\nfrom .weightavg import used'
  assert files['weightavg/__init__.py'] == '"""Package."""\n'
  assert 'weightavg/dead.py' not in files
  assert 'torch.' in files['requirements.txt']


def test_what_is_imported_from_a_package_comes_along(tmp_path):
  source = '"""One."""\n\nfrom weightavg import x, used\n'
  root = repository(tmp_path, {'submissions/one/submission.py': source})
  files = exporter.contents('one', root=root)
  assert files['weightavg/__init__.py'].endswith('from .dead import x\n')
  assert files['weightavg/dead.py'] == 'x = 1\n'


def test_imports_inside_functions_and_with_as_are_followed(tmp_path):
  source = (
    'import weightavg.used as u\n\n\n'
    'def f():\n  from weightavg.dead import x as y\n  return u, y\n'
  )
  root = repository(tmp_path, {'submissions/one/submission.py': source})
  files = exporter.contents('one', root=root)
  assert files['submission.py'] == (
    'from .weightavg import used as u\n\n\n'
    'def f():\n  from .weightavg.dead import x as y\n  return u, y\n'
  )


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('from lab import logs', 'it imports lab. Must import only weightavg'),
    ('import tests.fakes', 'it imports tests.fakes.'),
    ('from submissions.two import submission', 'it imports submissions.two'),
    ('import pandas', 'it imports pandas.'),
    ('from weightavg.nosuch import x', 'no module weightavg.nosuch'),
    ('import weightavg.used', 'it has no relative form'),
    ('from . import x', 'Must be absolute'),
    ('import importlib; importlib.import_module("a")', 'cannot be followed'),
  ],
)
def test_what_must_not_leave_is_refused(tmp_path, line, message):
  for file in ('submissions/one/submission.py', 'weightavg/used.py'):
    text = f'"""One."""\n\nfrom weightavg import used\n{line}\n'
    if file == 'weightavg/used.py':
      text = text.replace('from weightavg import used\n', '')
    root = repository(tmp_path / file[0], {file: text})
    with pytest.raises(InputError) as error:
      exporter.contents('one', root=root)
    assert message in str(error.value)
    assert f'{file}:' in str(error.value)


def test_relative_names():
  name = imports._relative_name
  assert name('p.a.b', 'p.a.__init__') == '.b'
  assert name('p', 'p.a.b') == '..'
  assert name('p.a', 'p.b') == '.a'
