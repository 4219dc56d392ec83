"""Tables and figures of the claims, from the rows of claims.json."""

import pathlib
from collections.abc import Sequence
from typing import Any

from lab.studies.claims import noise, statistics
from lab.studies.claims.averages import label
from lab.studies.claims.rows import deciding
from lab.studies.parts import plots, tables
from lab.studies.parts.frame import Row

# Of each unit: factor and format of a number, and its sign of units.
_UNITS = {
  'ratio': (1.0, '.2f', ''),
  'fraction': (100.0, '+.1f', ' %'),
  'spreads': (1.0, '+.1f', ' spreads'),
  'horizon': (100.0, '.1f', ' %'),
}
# The gains between which the papers and the local workloads lie.
_SHARES = (0.04, 0.2)
_COLORS = {
  statistics.HOLDS: 'C2',
  statistics.FAILS: 'C3',
  statistics.UNDECIDED: '0.5',
}


def measured(part: Row) -> str:
  """Median and interval of a part, in its unit.

  >>> measured({'unit': 'ratio', 'median': 0.8, 'low': 0.75, 'high': 0.9})
  '0.80 (0.75 to 0.90)'
  """
  factor, spec, sign = _UNITS[part['unit']]
  if part['median'] is None:
    return tables.UNKNOWN
  text = f'{factor * part["median"]:{spec}}'
  if part['low'] is not None:
    low, high = (f'{factor * part[end]:{spec}}' for end in ('low', 'high'))
    text += f' ({low} to {high})'
  return text + sign


def over_workloads(part: Row) -> str:
  """Lowest and highest median of a workload, for a part about each of them.

  Names the workloads on which it does not hold.

  >>> part = {'unit': 'ratio', 'by_workload': {'p': 0.7, 'q': 0.9}}
  >>> over_workloads(part | {'verdicts': {'p': 'holds', 'q': 'undecided'}})
  '0.70 to 0.90 by workload (undecided: q)'
  """
  factor, spec, sign = _UNITS[part['unit']]
  medians = part['by_workload'].values()
  low, high = (f'{factor * end(medians):{spec}}' for end in (min, max))
  others = '; '.join(
    f'{verdict}: {", ".join(names)}'
    for verdict in (statistics.FAILS, statistics.UNDECIDED)
    if (names := _workloads_with(verdict, part))
  )
  return f'{low} to {high}{sign} by workload' + (others and f' ({others})')


def _workloads_with(verdict: str, part: Row) -> list[str]:
  return [name for name, own in part['verdicts'].items() if own == verdict]


def source(row: Row) -> str:
  """The paper and the place, linked."""
  if row['source'] is None:
    return 'this project'
  place = f', {row["where"]}' if row['where'] else ''
  return f'[{row["source"]}]({row["url"]}){place}'


def table(rows: Sequence[Row]) -> str:
  """Markdown: a line for each claim."""
  lines = []
  for row in rows:
    text = '<br>'.join(
      f'{p["text"]}: {over_workloads(p) if p["on_each"] else measured(p)}'
      for p in deciding(row)
      if p['runs']
    )
    lines.append(
      [
        row['claim'],
        row['text'],
        source(row),
        row['figure'] or tables.UNKNOWN,
        row['reason'] or text or tables.UNKNOWN,
        f'**{row["verdict"]}**',
        _seeds(row),
        f'`{row["command"]}`',
      ]
    )
  header = ['', 'claim', 'source', 'its number', 'measured here']
  header += ['verdict', 'seeds x workloads', 'command']
  return tables.markdown(header, lines)


def _seeds(row: Row) -> str:
  if not row['seeds']:
    return tables.UNKNOWN
  return f'{row["seeds"]} x {len(row["workloads"])}'


def short_table(rows: Sequence[Row]) -> str:
  """Markdown: claims with first measurements and verdicts, for a front page."""
  lines = []
  for row in rows:
    parts = deciding(row)
    first = next(iter(parts), None)
    where = {
      name
      for part in parts
      if part['on_each'] and row['verdict'] != statistics.HOLDS
      for name in _workloads_with(row['verdict'], part)
    }
    lines.append(
      [
        row['text'],
        tables.UNKNOWN
        if row['source'] is None
        else f'[{row["source"]}]({row["url"]})',
        tables.UNKNOWN if first is None else measured(first),
        row['verdict'] + (f' ({", ".join(sorted(where))})' if where else ''),
        _seeds(row),
      ]
    )
  header = ['claim', 'source', 'here', 'verdict', 'seeds x workloads']
  return tables.markdown(header, lines)


def section(row: Row) -> str:
  """Markdown: one claim, how it is measured, and all of its parts."""
  paragraphs = [f'{row["text"]} ({source(row)}).', row['how']]
  if row['reason']:
    paragraphs.append(f'Not measured: {row["reason"]}')
  parts = [part for part in row['parts'] if part['runs']]
  if parts:
    workloads = sorted({w for part in parts for w in part['by_workload']})
    lines = []
    for part in parts:
      factor, spec, sign = _UNITS[part['unit']]
      medians = [part['by_workload'].get(name) for name in workloads]
      lines.append(
        [
          part['text'],
          measured(part),
          *(
            tables.UNKNOWN if m is None else f'{factor * m:{spec}}{sign}'
            for m in medians
          ),
          str(part['runs']),
          part['verdict'] if part['decides'] else f'({part["verdict"]})',
        ]
      )
    header = ['part', 'median (95 %)', *workloads, 'runs', 'verdict']
    paragraphs.append(tables.markdown(header, lines))
  return '\n\n'.join(paragraphs)


RULE = (
  'An effect is paired by seed. Its interval resamples workloads, then seeds '
  'within each, 9,999 times; the number is the median. A claim holds if the 95 '
  '% interval of every deciding part lies inside the range that the claim '
  'names, does not hold if one lies beyond it, and is undecided otherwise. '
  'Verdicts in parentheses decide nothing. A spread is the standard deviation '
  "over seeds of NadamW's final metric."
)


def page(rows: Sequence[Row]) -> str:
  """The content of claims.md."""
  parts = ['# Claims of the papers, measured', RULE, table(rows)]
  for row in rows:
    parts += [f'## {row["claim"]}', section(row)]
  return '\n\n'.join(parts) + '\n'


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """Medians and intervals of all deciding parts, a panel for each unit."""
  found: dict[str, list[tuple[str, Row]]] = {}
  for row in rows:
    for part in deciding(row):
      if part['median'] is not None:
        found.setdefault(part['unit'], []).append((row['claim'], part))
  if not found:
    return
  heights = [len(parts) for parts in found.values()]
  with plots.panels(
    len(found),
    1,
    9,
    1.0 + 0.15 * sum(heights) + 0.5 * len(found),
    height_ratios=heights,
  ) as (figure, panels):
    for axes, (unit, parts) in zip(panels[:, 0], found.items(), strict=True):
      _forest(axes, unit, parts)
    for verdict, color in _COLORS.items():
      panels[0][0].plot([], [], 'o', color=color, label=verdict)
    plots.legend_above(figure, panels[0][0], columns=len(_COLORS))
    plots.save(figure, path)


def _forest(axes: Any, unit: str, parts: Sequence[tuple[str, Row]]) -> None:
  """Draw intervals as lines, the ends of claimed ranges as ticks."""
  factor, _, sign = _UNITS[unit]
  for place, (_, part) in enumerate(parts):
    color = _COLORS.get(part['verdict'], 'black')
    if part['low'] is not None:
      ends = [factor * part['low'], factor * part['high']]
      axes.plot(ends, [place, place], color=color)
    axes.plot(factor * part['median'], place, 'o', color=color, markersize=4)
    for end in part['claimed']:
      if end is not None:
        axes.plot(factor * end, place, '|', color='black', markersize=9)
  texts = [f'{part["text"]}  {claim}' for claim, part in parts]
  axes.set_yticks(range(len(parts)), texts, fontsize='xx-small')
  axes.set_ylim(len(parts) - 0.5, -0.5)
  axes.set_xlabel(f'{unit}{"," + sign if sign.strip() == "%" else ""}')


def draw_noise(rows: Sequence[Row], path: pathlib.Path) -> None:
  """Steps saved against batch size, learning rate and length of training."""
  parts = [
    part
    for row in rows
    if row['claim'] == 'noise'
    for part in row['parts']
    if 'axis' in part and part['runs']
  ]
  workloads = sorted({name for part in parts for name in part['by_workload']})
  if not workloads:
    return
  styles = {noise.BEST: '-', noise.DEFAULT: '--'}
  with plots.panels(
    1, len(noise.AXES), 3.4 * len(noise.AXES), 3.4, sharey=True
  ) as (figure, panels):
    for axes, axis in zip(panels[0], noise.AXES, strict=True):
      for number, workload in enumerate(workloads):
        for average, style in styles.items():
          own = [
            (p['factor'], 100 * p['by_workload'][workload])
            for p in parts
            if (p['axis'], p['average']) == (axis, average)
            and workload in p['by_workload']
          ]
          axes.plot(
            *zip(*own, strict=True),
            plots.MARKERS[number] + style,
            color=f'C{number}',
            markerfacecolor='none',
            label=f'{workload}, '
            + ('best average' if average == noise.BEST else label(average)),
          )
      factors, _ = noise.AXES[axis]
      axes.set_xscale('log', base=2)
      axes.set_xticks(factors, [f'x{factor:g}' for factor in factors])
      axes.axhline(0, color='black', linewidth=0.5)
      for share in _SHARES:
        axes.axhline(100 * share, color='0.5', linestyle=':', linewidth=0.8)
      axes.set_title(axis)
    panels[0][0].set_ylabel('steps saved, %')
    plots.legend_above(figure, panels[0][0], columns=2)
    plots.save(figure, path)
