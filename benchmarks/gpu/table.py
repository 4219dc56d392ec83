"""Markdown tables of results/gpu/gpu.json: one for each section."""

from collections.abc import Mapping
from typing import Any

TITLES = {
  'environment': 'Machine and packages',
  'cuda_tests': 'Tests marked `cuda`',
  'averages': 'Averages: updates, means and swaps',
  'optimizers': 'A NadamW step beside AdamW',
  'shampoo': 'Shampoo in float32 and TF32',
  'placements': 'Placements of the average',
  'collectives': 'Several ranks',
  'train_imagenet_vit': 'Training step: imagenet_vit',
  'train_finewebedu_lm': 'Training step: finewebedu_lm',
  'train_wmt': 'Training step: wmt',
  'train_imagenet_resnet': 'Training step: imagenet_resnet',
  'cuda_graphs': 'CUDA graphs',
}


def machine_of(results: Mapping[str, Any]) -> str | None:
  """Device and torch that the section `environment` found, or None."""
  rows = results.get('environment', {}).get('rows', {})
  if 'machine' not in rows or 'packages' not in rows:
    return None
  return f'{rows["machine"]["device"]}, torch {rows["packages"]["torch"]}'


def page(results: Mapping[str, Any]) -> str:
  """All sections that there are results of."""
  here = machine_of(results)
  parts = []
  for name, title in TITLES.items():
    if name not in results:
      continue
    part = f'### {title}\n\n{section(results[name])}'
    machine = results[name].get('machine', here)
    if machine != here:
      part += f'\n\nMeasured on {machine}.'
    parts.append(part)
  return '\n\n'.join(parts) + '\n'


def section(entry: Mapping[str, Any]) -> str:
  """One section: rows that share a column in one table, and how it ended."""
  blocks: list[list[tuple[str, Mapping[str, Any]]]] = []
  known: set[str] = set()
  for name, values in entry['rows'].items():
    if not known & {*values}:
      blocks.append([])
      known = set()
    blocks[-1].append((name, values))
    known |= {*values}
  parts = [_table(block) for block in blocks]
  if entry['status'] != 'complete':
    message = entry['message'].strip().splitlines()
    ending = f'**{entry["status"]}**'
    if message:
      ending += f': `{message[-1]}`'
    parts.append(ending)
  return '\n\n'.join(parts) or 'No rows.'


def _table(rows: list[tuple[str, Mapping[str, Any]]]) -> str:
  columns = list(dict.fromkeys(c for _, values in rows for c in values))
  header = ' | '.join(column.replace('_', ' ') for column in columns)
  lines = [f'| | {header} |', '|---' * (len(columns) + 1) + '|']
  lines += [
    f'| {name} | {" | ".join(_text(values.get(c)) for c in columns)} |'
    for name, values in rows
  ]
  places = _places(rows)
  if places:
    lines += ['', f'Waits are asked for by {", ".join(places)}.']
  return '\n'.join(lines)


def _places(rows: list[tuple[str, Mapping[str, Any]]]) -> list[str]:
  """Lines of code that any row counts waits of."""
  counted = [
    value
    for _, values in rows
    for value in values.values()
    if isinstance(value, dict)
  ]
  return sorted({f'`{place}`' for count in counted for place in count})


def _text(value: Any) -> str:
  if value is None:
    return ''
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, float):
    return f'{value:.4g}'
  if isinstance(value, dict):
    return str(sum(value.values()))
  return str(value).replace('|', '/')
