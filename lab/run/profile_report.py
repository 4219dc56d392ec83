"""Report the time of a trial by action, as a table and as JSON."""

from typing import Any

from weightavg.pytorch.profiling import Recorder, Section

# The runner's own sections; all others are recorded inside of one of them.
TOP = (
  'Initializing dataset',
  'Initializing model',
  'Initializing optimizer',
  'Data selection',
  'Update parameters',
  'Prepare for eval',
  'Evaluation',
  'Checkpoint',
  'Logging',
)


class NestedRecorder(Recorder):
  """A recorder that also knows in which of the runner's sections each lies.

  A section reports when it ends, so the ones inside report before the one
  around them: they wait in a list until it comes.
  """

  def __init__(self, synchronize: bool = False) -> None:
    super().__init__(synchronize)
    self.nested: dict[tuple[str, str], Section] = {}
    self._open: list[tuple[str, float]] = []
    self._start = self.clock()

  def add(self, name: str, seconds: float) -> None:
    """Count one call of the section `name`."""
    super().add(name, seconds)
    if name not in TOP:
      self._open.append((name, seconds))
      return
    for inner, inner_seconds in self._open:
      entry = self.nested.setdefault((name, inner), Section())
      entry.calls += 1
      entry.total += inner_seconds
      entry.total_squares += inner_seconds**2
    self._open.clear()

  def report(self) -> dict[str, Any]:
    """Total seconds and the sections, the longest first, children after it."""
    total = self.clock() - self._start

    def row(name: str, parent: str | None, entry: Section) -> dict[str, Any]:
      return {
        'section': name,
        'parent': parent,
        'mean_seconds': entry.mean,
        'std_seconds': entry.std,
        'calls': entry.calls,
        'total_seconds': entry.total,
        'percent': 100 * entry.total / total,
      }

    rows = []
    outer = [(k, v) for k, v in self.sections.items() if k in TOP]
    for name, entry in sorted(outer, key=lambda p: -p[1].total):
      rows.append(row(name, None, entry))
      inner = [(k[1], v) for k, v in self.nested.items() if k[0] == name]
      for child, child_entry in sorted(inner, key=lambda p: -p[1].total):
        rows.append(row(child, name, child_entry))
    return {'total_seconds': total, 'sections': rows}


def table(report: dict[str, Any]) -> str:
  """A report as text, one line a section."""
  header = (
    f'{"Action":<28}{"Mean (s)":>12}{"Std (s)":>12}{"Calls":>9}'
    f'{"Total (s)":>12}{"%":>8}'
  )
  lines = [header, '-' * len(header)]
  lines.append(
    f'{"Total":<28}{"":>33}{report["total_seconds"]:>12.3f}{100:>8.2f}'
  )
  for row in report['sections']:
    name = row['section'] if row['parent'] is None else f'  {row["section"]}'
    lines.append(
      f'{name:<28}{row["mean_seconds"]:>12.3g}{row["std_seconds"]:>12.3g}'
      f'{row["calls"]:>9}{row["total_seconds"]:>12.3f}{row["percent"]:>8.2f}'
    )
  return '\n'.join(lines)


def seconds(report: dict[str, Any], *names: str) -> float:
  """Total seconds of the sections with the given names, wherever they lie."""
  return sum(
    row['total_seconds']
    for row in report['sections']
    if row['section'] in names
  )
