"""Fill the README's tables from results and from the configuration.

`make readme`, or `python -m lab.studies.readme`. A table stands between the
lines `<!-- begin NAME -->` and `<!-- end NAME -->`; one whose results are not
there is left as it is.
"""

import argparse
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from lab.run import profile_report
from lab.studies import (
  algoperf_table,
  auto_tables,
  horizon,
  repeated_study,
  study,
)
from weightavg.averaging_config import point_fields
from weightavg.config_fields import REQUIRED, allowed_text, fields_by_key
from weightavg.optimizers.nadamw import NadamWConfig
from weightavg.optimizers.shampoo import ShampooConfig
from weightavg.submission_config import RegularizationConfig, ScheduleConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _results(name: str) -> Any:
  path = ROOT / 'results' / name
  return json.loads(path.read_text()) if path.exists() else None


def knobs() -> str:
  """Every key that a point may have, from the configuration itself."""
  parts: dict[str, Any] = {
    'averaging': point_fields(),
    'budget and learning rate': fields_by_key(ScheduleConfig),
    'training step': fields_by_key(RegularizationConfig),
    'NadamW': fields_by_key(NadamWConfig),
    'Shampoo': fields_by_key(ShampooConfig),
  }
  lines = ['| key | default | allowed | meaning |', '|---|---|---|---|']
  for title, part in parts.items():
    lines.append(f'| **{title}** | | | |')
    for key, field in part.items():
      default = 'required'
      if field.default is not REQUIRED:
        default = _plain(field.default, field.metadata['stands_for'])
      allowed = re.sub('^in ', '', allowed_text(field))
      lines.append(
        f'| `{key}` | {default} | {allowed} | {field.metadata["help"]} |'
      )
  return '\n'.join(lines)


def _plain(value: Any, stands_for: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value)
  return text if stands_for is None else f'{text} ({stands_for})'


def steps() -> str | None:
  """Steps to target on the local workloads, from results/study."""
  rows = _results('study/study.json')
  return None if rows is None else study.table(rows)


def horizons() -> str | None:
  """The default and the best horizon, from results/horizon."""
  rows = _results('horizon/horizon.json')
  return None if rows is None else horizon.table(rows)


def running_statistics() -> str | None:
  """Averaged and live running statistics, from results/horizon."""
  rows = _results('horizon/horizon.json')
  return None if rows is None else horizon.statistics_table(rows)


def autos(*tables: Callable[[Any], str]) -> Callable[[], str | None]:
  """Tables of the study of the choice among averages, from results/auto."""

  def make() -> str | None:
    rows = _results('auto/auto.json')
    return None if rows is None else '\n\n'.join(t(rows) for t in tables)

  return make


def repeated() -> str | None:
  """The choice where data repeat, from results/auto."""
  rows = _results('auto/repeated.json')
  return None if rows is None else repeated_study.table(rows)


# What each ratio should be at most.
_LIMITS = {
  'ema_update/flat_lerp': 1.1,
  'lawa_sample/flat_copy': 1.1,
  'lawa_mean_10/bytes_limit': 1.3,
  'swap/flat_copy': 0.05,
  'nadamw_step/adamw_fused': 2.0,
  'nadamw_compiled_step/adamw_fused': 1.3,
  'shampoo_step/adamw_fused': 28,
  'shampoo_precondition_step_spread/plain_step': 2,
  'shampoo_state_bytes/params_bytes': 6,
  'offline_peak_bytes/model_bytes': 2.5,
  'offline_peak_bytes_pt/model_bytes': 2.5,
}
_LIMITS_BY_ROOM = {
  'train_step': 1.003,
  'train_step_every_step': 1.02,
  'probe': 0.005,
}


def performance() -> str | None:
  """Every benchmark's ratio and what it should be, from results/bench."""
  results = _results('bench/bench.json')
  if results is None:
    return None
  lines = [
    '| benchmark | ratio | at most | ours, ms | other, ms | against |',
    '|---|---|---|---|---|---|',
  ]
  for name, row in sorted(results.items()):
    limit = _LIMITS.get(name, _LIMITS_BY_ROOM.get(name.split('/')[0]))
    ratio, goal = row['ratio'], ''
    if limit is not None:
      goal = f'{limit:g}' + (
        '' if ratio is not None and ratio <= limit else ' **missed**'
      )
    times = [
      '' if row[key] is None else f'{row[key]:.3g}'
      for key in ('ours_ms', 'other_ms')
    ]
    cells = [
      f'`{name}`',
      '–' if ratio is None else f'{ratio:.3f}',
      goal,
      *times,
      row['against'],
    ]
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def algoperf() -> str | None:
  """Submissions and workloads of the benchmark, from results/algoperf."""
  outcomes = _results('algoperf/matrix.json')
  return None if outcomes is None else algoperf_table.table(outcomes)


def breakdown() -> str | None:
  """Where the time of a run goes, from results/bench/time_breakdown.json."""
  results = _results('bench/time_breakdown.json')
  if results is None:
    return None
  parts = [
    f'NadamW+EMA on the language model, {title}:\n\n```\n'
    f'{profile_report.table(profile)}\n```'
    for title, profile in results.items()
  ]
  return '\n\n'.join(parts)


TABLES: dict[str, Callable[[], str | None]] = {
  'knobs': knobs,
  'steps': steps,
  'performance': performance,
  'horizon': horizons,
  'running_statistics': running_statistics,
  'auto': autos(auto_tables.extent, auto_tables.verdicts),
  'auto_steps': autos(auto_tables.steps),
  'auto_gaps': autos(auto_tables.gaps),
  'auto_comparison': autos(auto_tables.comparison),
  'auto_rules': autos(auto_tables.rules),
  'auto_ablation': autos(auto_tables.ablation),
  'auto_repeated': repeated,
  'breakdown': breakdown,
  'algoperf': algoperf,
}


def filled(text: str) -> str:
  """The README with every table replaced that can be made."""
  for name, make in TABLES.items():
    table = make()
    pattern = f'(<!-- begin {name} -->\n).*?(<!-- end {name} -->)'
    if table is not None:
      text = re.sub(
        pattern,
        lambda match, table=table: f'{match[1]}{table}\n{match[2]}',  # type: ignore[misc]
        text,
        flags=re.DOTALL,
      )
  return text


if __name__ == '__main__':
  argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
  readme = ROOT / 'README.md'
  readme.write_text(filled(readme.read_text()))
