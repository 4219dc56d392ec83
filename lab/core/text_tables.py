"""Format tables as plain text."""

from collections.abc import Iterable, Sequence


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Format text in columns: the first left-aligned, the others right-aligned.

  >>> print(text_table(['name', 'steps'], [['a', '10'], ['long', '9']]))
  name  steps
  -----------
  a        10
  long      9
  """
  lines = [list(header), *map(list, rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = []
  for line in lines:
    cells = [line[0].ljust(widths[0])]
    cells += [
      cell.rjust(width)
      for cell, width in zip(line[1:], widths[1:], strict=True)
    ]
    text.append('  '.join(cells).rstrip())
  text.insert(1, '-' * len(text[0]))
  return '\n'.join(text)
