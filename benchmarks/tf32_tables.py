"""Tables of docs/tf32.md, from what `python -m benchmarks.tf32` wrote."""

import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.tf32 import OUTPUT
from benchmarks.tf32_products import VARIANTS

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _read(part: str) -> Any:
  return json.loads((ROOT / OUTPUT / f'{part}.json').read_text())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def spectra(what: str) -> str:
  """Relative errors by condition number, at d = 512, simulated and real.

  Args:
    what: 'root' or 'direction'.
  """
  rows = []
  real = {_key(row): row for row in _read('gpu')['spectra']}
  for row in _read('spectra'):
    if row['dim'] == 512:
      measured = real[_key(row)]
      cells = [
        f'{row[name][what]:.1e} / '
        + (f'{measured[name][what]:.1e}' if name in measured else '-')
        for name in VARIANTS
      ]
      rows.append([f'{row["order"]}, {row["condition"]:.0e}', *cells])
  return _table(['order, condition', *VARIANTS], rows)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
  return row['dim'], row['order'], row['condition']


def gradients() -> str:
  """Errors along a training run: median and maximum."""
  labels = {
    'root': 'roots, relative error',
    'direction': 'directions, relative error',
    'one_minus_cosine': 'directions, 1 - cosine',
  }
  errors = _read('gradients')
  names = [name for name in VARIANTS if name in errors]
  rows = [
    [
      f'{label}: {statistic}',
      *(f'{errors[name][key][statistic]:.1e}' for name in names),
    ]
    for key, label in labels.items()
    for statistic in ('median', 'max')
  ]
  return _table(['', *names], rows)


def steps() -> str:
  """Steps to target and best validation loss, by seed."""
  results = {(r['seed'], r['variant']): r for r in _read('steps')}
  seeds = sorted({seed for seed, _ in results})
  # A variant counts once all its seeds have run.
  names = [
    name for name in VARIANTS if all((seed, name) in results for seed in seeds)
  ]
  rows = []
  for seed in seeds:
    found = [results[seed, name] for name in names]
    rows.append(
      [
        f'seed {seed}',
        *(
          f'{r["steps_to_target"] or "never"} ({r["best_validation"]:.4f})'
          for r in found
        ),
      ]
    )
  medians = [
    statistics.median(
      results[seed, name]['steps_to_target'] or float('inf') for seed in seeds
    )
    for name in names
  ]
  rows.append(['median', *(f'{median:.0f}' for median in medians)])
  return _table(['', *names], rows)


def step_times() -> str:
  """Milliseconds of a step under the host's two settings."""
  times = _read('gpu')['step_ms']
  rows = [
    [f"`'{setting}'`", *(f'{ms[kind]:.1f}' for kind in ('plain', 'roots'))]
    for setting, ms in times.items()
  ]
  head = ["host's precision", 'step, ms', 'step that takes all roots, ms']
  return _table(head, rows)
