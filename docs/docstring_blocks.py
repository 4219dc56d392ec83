"""Show examples and equations of docstrings as code in the API pages.

A griffe extension: paragraphs that begin with `>>>`, and indented paragraphs
before the first section, become fenced code blocks.
"""

import inspect
import re
import textwrap
from typing import Any

from griffe import Extension, Object

_SECTION = re.compile(r'(Args|Attributes|Raises|Returns|Yields):\n')


def with_blocks(text: str) -> str:
  """Fence the examples and equations of a docstring."""
  paragraphs, in_sections = [], False
  for paragraph in inspect.cleandoc(text).split('\n\n'):
    in_sections = in_sections or bool(_SECTION.match(paragraph))
    if paragraph.startswith('>>>'):
      paragraph = f'```pycon\n{paragraph.rstrip()}\n```'
    elif not in_sections and paragraph.startswith('  '):
      paragraph = f'```text\n{textwrap.dedent(paragraph).rstrip()}\n```'
    paragraphs.append(paragraph)
  return '\n\n'.join(paragraphs)


class DocstringBlocks(Extension):
  """Rewrite each docstring before it is parsed."""

  def on_object(self, *, obj: Object, **kwargs: Any) -> None:
    """Fence the blocks of an object's docstring."""
    if obj.docstring is not None:
      obj.docstring.value = with_blocks(obj.docstring.value)
