"""Examples and equations of docstrings become code in the API pages."""

import importlib.util

import pytest
from pages import ROOT

DOCSTRING = """Half of a number.

    y = x / 2

  Args:
    x: a number.

      Indented text of an argument.

  >>> half(4)
  2.0
  """
EXPECTED = """Half of a number.

```text
y = x / 2
```

Args:
  x: a number.

    Indented text of an argument.

```pycon
>>> half(4)
2.0
```"""


def test_equations_and_examples_are_fenced():
  pytest.importorskip('griffe', reason='`make docs` installs it')
  path = ROOT / 'docs' / 'docstring_blocks.py'
  spec = importlib.util.spec_from_file_location('docstring_blocks', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert module.with_blocks(DOCSTRING) == EXPECTED
