"""The wheel holds weightavg alone and runs the README in an environment."""

import pathlib
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest
from pages import README, ROOT, blocks, copy_repository

from weightavg import __version__


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """A wheel built from the files that git would commit."""
  folder = tmp_path_factory.mktemp('wheel')
  source = folder / 'source'
  copy_repository(source)
  subprocess.run(
    [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir',
     folder, source],
    check=True, capture_output=True,
  )  # fmt: skip
  (found,) = folder.glob('*.whl')
  return found


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
  """Interpreter of an environment with the wheel; torch is this one's."""
  folder = tmp_path_factory.mktemp('environment')
  venv.create(folder, with_pip=False)
  site = pathlib.Path(
    sysconfig.get_path('purelib', 'venv', {'base': str(folder)})
  )
  subprocess.run(
    [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps',
     '--no-index', '--disable-pip-version-check', '--target', site, wheel],
    check=True,
  )  # fmt: skip
  # A folder that a .pth file names has its own .pth files ignored, and with
  # them the editable installation of this clone.
  (site / 'torch.pth').write_text(sysconfig.get_path('purelib') + '\n')
  return folder / 'bin' / 'python'


def run(python, code, folder):
  """Standard output of a program."""
  return subprocess.run(
    [python, '-I', '-W', 'error', '-c', code],
    cwd=folder, check=True, capture_output=True, text=True,
  ).stdout  # fmt: skip


def test_the_wheel_holds_weightavg_and_nothing_else(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  folders = {name.split('/')[0] for name in names}
  assert folders == {'weightavg', f'weightavg-{__version__}.dist-info'}
  packaged = {name for name in names if name.startswith('weightavg/')}
  files = (ROOT / 'weightavg').rglob('*')
  assert packaged == {
    path.relative_to(ROOT).as_posix()
    for path in files
    if path.is_file() and path.suffix != '.pyc'
  }
  assert 'weightavg/py.typed' in packaged


def test_the_lines_of_the_readme_run_where_it_is_installed(python, tmp_path):
  (code,) = blocks(README, 'python')
  raw, averaged = map(float, run(python, code, tmp_path).split())
  assert raw != averaged


def test_nothing_of_the_clone_is_visible_there(python, tmp_path):
  code = """
import importlib.util
import weightavg
print(weightavg.__file__)
print(importlib.util.find_spec('lab'), importlib.util.find_spec('submissions'))
"""
  path, others = run(python, code, tmp_path).splitlines()
  assert not pathlib.Path(path).is_relative_to(ROOT)
  assert others == 'None None'


def test_the_citation_and_the_changes_name_the_version():
  citation = (ROOT / 'CITATION.cff').read_text()
  assert f'\nversion: {__version__}\n' in citation
  assert f'\n## {__version__}\n' in (ROOT / 'CHANGELOG.md').read_text()
