"""Digests of the code that a run's result comes from."""

import ast
import functools
import hashlib
import importlib
import pathlib

# What trains beneath a submission's file and a workload's module: all modules
# of a package, and single ones of another.
PACKAGES = ('weightavg', 'lab.workloads.jax')
MODULES = tuple(
  f'lab.workloads.{name}' for name in ('base', 'device', 'modules', 'stream')
)


@functools.cache
def of_training() -> str:
  """Hash of the code that trains, below what a run's content names.

  A process computes it once, in seconds: it does not see what changes on the
  disk after its modules were imported.
  """
  files = {}
  for package in PACKAGES:
    folder = _path_of(package).parent
    for path in folder.rglob('*.py'):
      files[f'{package}/{path.relative_to(folder).as_posix()}'] = path
  files |= {name: _path_of(name) for name in MODULES}
  lines = [f'{name} {of_file(str(files[name]))}\n' for name in sorted(files)]
  return hashlib.sha256(''.join(lines).encode()).hexdigest()[:16]


@functools.cache
def of_module(name: str) -> str:
  """Hash of a module's code, or of that of all modules in a package."""
  file = _path_of(name)
  files = (
    sorted(file.parent.glob('*.py')) if file.stem == '__init__' else [file]
  )
  return ' '.join(of_file(str(file)) for file in files)


def of_file(path: str) -> str:
  """Hash of a file's code without comments, docstrings and layout."""
  tree = ast.parse(pathlib.Path(path).read_text(encoding='utf-8'))
  for node in ast.walk(tree):
    body = getattr(node, 'body', None)
    if isinstance(body, list):
      node.body = [s for s in body if not _is_text(s)]  # type: ignore[attr-defined]
  return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _path_of(name: str) -> pathlib.Path:
  path = importlib.import_module(name).__file__
  assert path is not None
  return pathlib.Path(path)


def _is_text(statement: ast.stmt) -> bool:
  return (
    isinstance(statement, ast.Expr)
    and isinstance(statement.value, ast.Constant)
    and isinstance(statement.value.value, str)
  )
