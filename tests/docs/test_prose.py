"""Docstrings open with a verb or name their object, not with a fragment."""

import ast

import pytest
from pages import ROOT

FOLDERS = ('benchmarks', 'docs', 'lab', 'submissions', 'tests', 'weightavg')
FRAGMENTS = (
  'How',
  'Of',
  'Over',
  'Those',
  'What',
  'Whatever',
  'Where',
  'Whether',
  'Who',
)
DEFINITIONS = (
  ast.Module,
  ast.ClassDef,
  ast.FunctionDef,
  ast.AsyncFunctionDef,
)


def openings(path):
  """First words of the docstrings in a file, with their lines."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, DEFINITIONS):
      text = ast.get_docstring(node)
      if text:
        yield text.split()[0], f'{path}:{getattr(node, "lineno", 1)}'


@pytest.mark.parametrize('folder', FOLDERS)
def test_no_docstring_opens_with_a_fragment(folder):
  found = [
    place
    for path in sorted((ROOT / folder).rglob('*.py'))
    for word, place in openings(path)
    if word in FRAGMENTS
  ]
  assert not found
