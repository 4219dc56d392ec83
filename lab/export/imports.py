"""Which modules a file reaches by its imports, and the same made relative.

Found in the syntax trees, without running anything: absolute imports at any
depth of a file count, those inside functions too. A package's `__init__` is
reached only where a name is imported that the `__init__` itself defines, and
stands as an empty one otherwise: importing a module of a package must not
drag in what the package offers to others.
"""

import ast
import dataclasses
import functools
import pathlib
import sys
from typing import TypeGuard

from lab.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Import:
  """One `from MODULE import NAMES` or `import MODULE`.

  Args:
    module: Absolute dotted name.
    names: Imported names, empty for `import MODULE`.
    line: Line of the file, from 1.
    bound: Name of `import MODULE as NAME`, if any.
  """

  module: str
  names: tuple[str, ...]
  line: int
  bound: str | None = None


# Many submissions reach the same modules: each is parsed once.
@functools.cache
def imports_of(source: str, path: str) -> tuple[Import, ...]:
  """All imports of a file.

  Raises:
    InputError: a relative import, or one by name at run time: neither can be
      followed.
  """
  found = []
  for node in ast.walk(ast.parse(source, path)):
    if isinstance(node, ast.ImportFrom):
      if node.level or node.module is None:
        raise InputError(
          f'Invalid import in {path}:{node.lineno}. Must be absolute.'
        )
      names = tuple(alias.name for alias in node.names)
      found.append(Import(node.module, names, node.lineno))
    elif isinstance(node, ast.Import):
      found += [
        Import(alias.name, (), node.lineno, alias.asname)
        for alias in node.names
      ]
    elif _is_dynamic(node):
      raise InputError(
        f'Invalid import in {path}:{node.lineno}. Must be an import '
        'statement: what is imported by name cannot be followed.'
      )
  return tuple(found)


def _is_dynamic(node: ast.AST) -> TypeGuard[ast.Call]:
  if not isinstance(node, ast.Call):
    return False
  function = node.func
  name = getattr(function, 'attr', getattr(function, 'id', None))
  return name in ('import_module', '__import__')


class Graph:
  """The modules of one package that a file reaches.

  Args:
    root: Folder that holds the package.
    package: Name of the package whose modules are copied.
    provided: Top-level modules that are there wherever the file runs.
  """

  def __init__(
    self, root: pathlib.Path, package: str, provided: frozenset[str]
  ) -> None:
    self.root = root
    self.package = package
    self.provided = provided
    self.modules: set[str] = set()
    self.outside: set[str] = set()

  def path_of(self, module: str) -> pathlib.Path | None:
    """File of a module of the package, or None."""
    base = self.root.joinpath(*module.split('.'))
    for path in (base / '__init__.py', base.with_suffix('.py')):
      if path.is_file():
        return path
    return None

  def add(self, path: pathlib.Path) -> None:
    """Follow the imports of a file, and those of what it reaches.

    Raises:
      InputError: it reaches something that is neither part of the package nor
        provided.
    """
    shown = str(path.relative_to(self.root))
    for each in imports_of(path.read_text(encoding='utf-8'), shown):
      top = each.module.partition('.')[0]
      if top == self.package:
        for module in self.targets(each, shown):
          self._reach(module)
      elif top in self.provided:
        self.outside.add(top)
      elif top not in sys.stdlib_module_names:
        raise InputError(
          f'Cannot export {shown}:{each.line}: it imports {each.module}. Must '
          f'import only {self.package}, the standard library or '
          f'{", ".join(sorted(self.provided))}.'
        )

  def targets(self, each: Import, shown: str) -> list[str]:
    """The modules that an import of the package needs.

    Raises:
      InputError: no such module.
    """
    path = self.path_of(each.module)
    if path is None:
      raise InputError(
        f'Cannot export {shown}:{each.line}: no module {each.module}.'
      )
    if not each.names:
      return [each.module]
    needed = []
    for name in each.names:
      submodule = f'{each.module}.{name}'
      needed.append(submodule if self.path_of(submodule) else each.module)
    return needed

  def _reach(self, module: str) -> None:
    if module in self.modules:
      return
    self.modules.add(module)
    path = self.path_of(module)
    assert path is not None
    self.add(path)


def relative(source: str, path: str, module: str, package: str) -> str:
  """The source with imports of `package` made relative.

  Args:
    source: Text of the file.
    path: For messages.
    module: Dotted name under which the file will stand; a package's own file
      as `name.__init__`.
    package: Whose imports are rewritten; it stands beside `module`'s top.

  Raises:
    InputError: an import that has no relative form.
  """
  lines = source.splitlines(keepends=True)
  for each in imports_of(source, path):
    if each.module.partition('.')[0] != package:
      continue
    prefix = _relative_name(each.module, module)
    old, new = f'from {each.module} import', f'from {prefix} import'
    if not each.names:
      parent, _, name = each.module.rpartition('.')
      if each.bound is None or not parent:
        raise InputError(
          f'Invalid import in {path}:{each.line}. Must be `from ... import` '
          'or have an `as`: it has no relative form.'
        )
      old = f'import {each.module} as'
      new = f'from {_relative_name(parent, module)} import {name} as'
    line = lines[each.line - 1]
    if line.count(old) != 1:
      raise InputError(
        f'Invalid import in {path}:{each.line}. Must stand on a line of its '
        'own, written as formatted.'
      )
    lines[each.line - 1] = line.replace(old, new)
  return ''.join(lines)


def _relative_name(target: str, module: str) -> str:
  """`target` as seen from `module`.

  >>> _relative_name('p.a.b', 'p.a.c'), _relative_name('p.d', 'p.a.c')
  ('.b', '..d')
  >>> _relative_name('p.a', 'p.a.c'), _relative_name('p.a', 'submission')
  ('.', '.p.a')
  """
  here = module.split('.')[:-1]
  there = target.split('.')
  common = 0
  while common < min(len(here), len(there)) and here[common] == there[common]:
    common += 1
  return '.' * (len(here) - common + 1) + '.'.join(there[common:])
